"""CLIP scores and CMMD's embeddings, with tiny models saved in folders as transformers saves them."""

import numpy as np
import pytest
import torch
import transformers
from metric_cases import CLIP_SIDE as SIDE
from metric_cases import save_clip
from pictures import picture
from PIL import Image

from diffusers_crosswkv.evaluation.metrics import extractors
from diffusers_crosswkv.evaluation.metrics.extractors import ClipEmbeddings, ClipScores

CPU = torch.device("cpu")
PROMPTS = ("a handwritten ONE", "数字二", "un tres escrito a mano")


@pytest.fixture
def images():
    return np.stack([np.asarray(picture(40, 48, seed)) for seed in range(3)])


@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_scores_are_cosines_of_single_pairs(family, images, tokenizer, tmp_path):
    """One pair after the other, the model called by hand.

    SigLIP was trained on small letters, at full length, without a mask.
    """
    model = save_clip(tmp_path / family, tokenizer, family)
    scorer = ClipScores(str(tmp_path / family), PROMPTS, CPU)
    cosines = scorer(images, 0)["cosine"]
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / family, backend="pil")
    for number, (image, prompt) in enumerate(zip(images, PROMPTS, strict=True)):
        if family == "Siglip":
            tokens = {"input_ids": tokenizer(prompt.lower(), padding="max_length", max_length=12).input_ids}
            assert len(tokens["input_ids"]) == 12
        else:
            tokens = dict(tokenizer(prompt, truncation=True, max_length=12))
        with torch.no_grad():
            pixels = processor(Image.fromarray(image), return_tensors="pt").pixel_values
            output = model(**{name: torch.tensor([value]) for name, value in tokens.items()}, pixel_values=pixels)
        cosine = float(torch.nn.functional.cosine_similarity(output.image_embeds, output.text_embeds))
        assert float(cosines[number]) == pytest.approx(cosine, rel=1e-4, abs=1e-6)
    small = family == "Siglip"  # told by its text, since the tokenizer at hand makes letters small by itself
    assert scorer.texts == [prompt.lower() if small else prompt for prompt in PROMPTS]
    torch.testing.assert_close(scorer(images[1:], 1)["cosine"], cosines[1:], rtol=1e-4, atol=1e-6)


def test_what_an_identity_depends_on(tokenizer, tmp_path):
    save_clip(tmp_path / "clip", tokenizer)
    scorer = ClipScores(str(tmp_path / "clip"), PROMPTS, CPU)
    other = ClipScores(str(tmp_path / "clip"), (*PROMPTS[:2], "another"), CPU)
    assert scorer.identity(0, 2) == other.identity(0, 2)
    assert scorer.identity(0, 3) != other.identity(0, 3)
    assert "clip sha256:" in scorer.weights
    assert scorer.cut_prompts() == 0
    assert ClipScores(str(tmp_path / "clip"), ["one " * 40, "one"], CPU).cut_prompts() == 1


def test_embeddings_of_cmmd(images, tokenizer, tmp_path):
    save_clip(tmp_path / "clip", tokenizer)
    network = ClipEmbeddings(str(tmp_path / "clip"), CPU)
    embeddings = network(images, 0)["embedding"]
    assert embeddings.shape == (3, 16)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    square = Image.fromarray(images[0]).crop((4, 0, 44, 40)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = (np.asarray(square) / 255 - extractors.CLIP_MEAN) / extractors.CLIP_STD
    tower = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path / "clip").eval()
    with torch.no_grad():
        expected = tower(torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None]).image_embeds
    torch.testing.assert_close(embeddings[:1], expected / expected.norm(), rtol=1e-4, atol=1e-5)


def test_a_scorer_is_checked_with_its_weights(tokenizer, tmp_path):
    save_clip(tmp_path / "clip", tokenizer)
    ClipScores(str(tmp_path / "clip"), PROMPTS, CPU).check()
    (tmp_path / "clip/model.safetensors").unlink()
    for scorer in (ClipScores(str(tmp_path / "clip"), PROMPTS, CPU), ClipEmbeddings(str(tmp_path / "clip"), CPU)):
        with pytest.raises(OSError, match="clip is neither a folder of a model with safetensors weights"):
            scorer.check()


def test_a_model_that_cannot_be_had():
    message = (
        "nobody/nothing is neither a folder .* could not be downloaded .*; run `hf download nobody/nothing` where"
    )
    for make in (lambda: ClipScores("nobody/nothing", PROMPTS, CPU), lambda: ClipEmbeddings("nobody/nothing", CPU)):
        with pytest.raises(OSError, match=message):
            make()
