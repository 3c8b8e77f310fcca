"""Features, weights and images that tests of metrics share, and torch-fidelity's figures for them.

    pip install torch-fidelity && python tests/support/metric_cases.py      # writes torch_fidelity.json anew

torch-fidelity needs a torchvision made for the torch at hand, which not every machine has: its figures are kept in a
file. All numbers come from NumPy's frozen generator.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

from diffusers_crosswkv.evaluation.metrics.inception import InceptionV3

RECORDED = Path(__file__).with_name("torch_fidelity.json")
SUBSETS, SUBSET_SIZE = 5, 40
CLIP_SIDE = 32
TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def correlated(count, size, seed, shift=0.0):
    """`[count, size]` float32, of decaying scales, mixed."""
    rng = np.random.RandomState(seed)
    mixing = np.random.RandomState(99).standard_normal((size, size)) / np.sqrt(size)
    scales = 2.0 ** -np.linspace(0, 4, size)
    return torch.from_numpy((rng.standard_normal((count, size)) * scales @ mixing + shift).astype(np.float32))


def two_sets():
    return correlated(150, 24, 1), correlated(120, 24, 2, 0.1)


def some_logits():
    return torch.from_numpy(np.random.RandomState(3).standard_normal((60, 30)).astype(np.float32) * 3)


def inception_state():
    """Weights of the shapes of torch-fidelity's file, random but such that all layers matter."""
    rng = np.random.RandomState(4)
    with torch.device("meta"):
        network = InceptionV3()
    state = {}
    for name, value in network.state_dict().items():
        shape = tuple(value.shape)
        if name.endswith("num_batches_tracked"):
            new = np.zeros(())
        elif name.endswith("running_var"):
            new = 1 + rng.random_sample(shape)
        elif name.endswith(("bn.weight",)):
            new = 1 + 0.2 * rng.standard_normal(shape)
        elif value.dim() > 1:
            new = rng.standard_normal(shape) * np.sqrt(2 / value[0].numel())
        else:
            new = 0.2 * rng.standard_normal(shape)
        state[name] = torch.from_numpy(new.astype(np.float32)).to(value.dtype)
    return state


def two_images():
    """One smaller and one larger than Inception's 299 pixels, of unequal sides: `[1, 3, H, W]` uint8 each."""
    rng = np.random.RandomState(5)
    shapes = ((1, 3, 32, 20), (1, 3, 310, 330))
    return [torch.from_numpy(rng.randint(0, 256, shape).astype(np.uint8)) for shape in shapes]


def save_clip(folder, tokenizer, family="CLIP"):
    """A tiny model with random weights, of transformers' classes CLIP... or Siglip..., as the Hub has them."""
    torch.manual_seed(0)
    config_class = getattr(transformers, f"{family}Config")
    vision = TOWER | {"image_size": CLIP_SIDE, "patch_size": 8, "projection_dim": 16}
    text = TOWER | {"vocab_size": len(tokenizer), "max_position_embeddings": 12, "projection_dim": 16}
    text |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id, "pad_token_id": 0}
    extra = {"projection_dim": 16} if family == "CLIP" else {}
    model = getattr(transformers, f"{family}Model")(config_class(text_config=text, vision_config=vision, **extra))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"shortest_edge": CLIP_SIDE} if family == "CLIP" else {"height": CLIP_SIDE, "width": CLIP_SIDE}
    processor = getattr(transformers, f"{family}ImageProcessor")
    more = {"crop_size": {"height": CLIP_SIDE, "width": CLIP_SIDE}} if family == "CLIP" else {}
    processor(size=size, **more).save_pretrained(folder)
    return model.eval()


def torch_fidelity_figures(folder):
    """What torch-fidelity makes of the cases; its own mapping of weights, so the file is one of torch.save."""
    from torch_fidelity import __version__
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    one, other = two_sets()
    figures = {"torch_fidelity": __version__}
    statistics = [fid_features_to_statistics(x) for x in (one, other)]
    figures |= fid_statistics_to_metric(*statistics, verbose=False)
    figures |= kid_features_to_metric(one, other, kid_subsets=SUBSETS, kid_subset_size=SUBSET_SIZE, verbose=False)
    figures |= prc_features_to_metric(one, other, verbose=False)
    figures |= isc_features_to_metric(some_logits(), splits=3, shuffle=False)
    path = Path(folder) / "weights.pth"
    torch.save(inception_state(), path)
    network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(path))
    spatial = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: spatial.append(output))
    figures["images"] = []
    for image in two_images():
        pool, logits = network(image)
        nhwc = spatial.pop().movedim(1, -1)[..., :7].reshape(-1)
        kept = {"pool": pool[0, ::41], "logits": logits[0, ::41], "spatial": nhwc[::17]}
        figures["images"].append({name: x.tolist() for name, x in kept.items()})
    return figures


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        RECORDED.write_text(json.dumps(torch_fidelity_figures(scratch), indent=1) + "\n")
