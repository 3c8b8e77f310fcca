"""What is computed of batches of images: Inception's features, CLIP's."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from .image_sets import digest
from .inception import SIDE, InceptionV3
from .weights import load_inception, sha256

CLIP_MODEL = "openai/clip-vit-large-patch14"
MULTILINGUAL_CLIP_MODEL = "google/siglip2-large-patch16-256"
CMMD_MODEL = "openai/clip-vit-large-patch14-336"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class InceptionFeatures:
    """`pool` and `spatial`, see [`InceptionV3`]; always float32, without TF32."""

    resize = f"TensorFlow 1 bilinear to {SIDE} x {SIDE}"

    def __init__(self, path: Path, device: torch.device):
        self.path, self.device = path, device
        self.weights = f"{path.name} sha256:{sha256(path)}"

    @cached_property
    def network(self) -> InceptionV3:
        return load_inception(self.path).to(self.device)

    def identity(self, start: int, stop: int) -> str:
        return f"inception {self.weights}"

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, start: int) -> dict[str, torch.Tensor]:
        pixels = torch.tensor(images).permute(0, 3, 1, 2).to(self.device)
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            return self.network(pixels)._asdict()

    @torch.inference_mode()
    def logits(self, pool: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.network.logits(part.to(self.device)).cpu() for part in pool.split(512)])


class ClipScores:
    """`cosine` of an image with its prompt, for [`clip_score`].

    Images are resized by Pillow whatever else is installed, so that figures of two machines agree. Any model of
    transformers with embeddings of text and of images will do: CLIP, AltCLIP, SigLIP, SigLIP 2, Chinese CLIP. The
    SigLIPs get their prompts as they were trained: in small letters, at full length, and without a mask
    (arXiv:2502.14786).

    Args:
        model: a folder or an id on the Hub; only safetensors weights are read.
        prompts: one per image.

    Raises:
        OSError: the model is not there and cannot be downloaded.
    """

    def __init__(self, model: str, prompts: Sequence[str], device: torch.device):
        self.model, self.device = model, device
        self.weights = weights_of(model)
        self.config = load(transformers.AutoConfig, model)
        self.tokenizer = load(transformers.AutoTokenizer, model)
        self.is_siglip = self.config.model_type.startswith("siglip")
        self.texts = [prompt.lower() for prompt in prompts] if self.is_siglip else list(prompts)

    def identity(self, start: int, stop: int) -> str:
        return f"clip cosine {self.weights} {digest(self.texts[start:stop])}"

    @cached_property
    def image_processor(self) -> Any:
        return load(transformers.AutoImageProcessor, self.model, backend="pil")

    @property
    def resize(self) -> str:
        return resize_of(self.image_processor)

    @cached_property
    def network(self) -> Any:
        return load(transformers.AutoModel, self.model, use_safetensors=True).eval().to(self.device)

    def check(self) -> None:
        """
        Raises:
            OSError: a file of the model is missing and cannot be downloaded.
            ValueError: the model does not embed images and texts.
        """
        network = self.network
        if not (hasattr(network, "get_image_features") and hasattr(network, "get_text_features")):
            raise ValueError(
                f"{self.model} must embed images and texts as CLIP does, got {type(network).__name__}; name another."
            )
        _ = self.image_processor

    @property
    def max_tokens(self) -> int:
        return min(self.tokenizer.model_max_length, self.config.text_config.max_position_embeddings)

    def cut_prompts(self) -> int:
        """How many prompts the model does not read to their end."""
        lengths = [len(ids) for ids in self.tokenizer(self.texts).input_ids]
        return sum(length > self.max_tokens for length in lengths)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, start: int) -> dict[str, torch.Tensor]:
        pixels = self.image_processor(list(map(Image.fromarray, images)), return_tensors="pt").to(self.device)
        tokens = self.tokenizer(
            self.texts[start : start + len(images)],
            padding="max_length" if self.is_siglip else True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
            return_attention_mask=not self.is_siglip,
        ).to(self.device)
        of_images = self.network.get_image_features(**pixels).pooler_output.float()
        of_prompts = self.network.get_text_features(**tokens).pooler_output.float()
        return {"cosine": torch.nn.functional.cosine_similarity(of_images, of_prompts)}


class ClipEmbeddings:
    """`embedding`: CLIP's, of unit length, of the central square resized by Pillow (bicubic), as CMMD's authors do."""

    def __init__(self, model: str, device: torch.device):
        self.model, self.device = model, device
        self.weights = weights_of(model)

    def identity(self, start: int, stop: int) -> str:
        return f"cmmd {self.weights}"

    @cached_property
    def side(self) -> int:
        return load(transformers.CLIPVisionConfig, self.model).image_size

    @property
    def resize(self) -> str:
        return f"central square, Pillow bicubic to {self.side} x {self.side}"

    @cached_property
    def network(self) -> Any:
        network = load(transformers.CLIPVisionModelWithProjection, self.model, use_safetensors=True)
        return network.eval().to(self.device)

    def check(self) -> None:
        """
        Raises:
            OSError: the weights are missing and cannot be downloaded.
        """
        _ = self.network

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, start: int) -> dict[str, torch.Tensor]:
        pixels = torch.from_numpy(np.stack([square(image, self.side) for image in images])) / 255
        pixels = (pixels - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
        embeddings = self.network(pixel_values=pixels.permute(0, 3, 1, 2).to(self.device)).image_embeds.float()
        return {"embedding": torch.nn.functional.normalize(embeddings)}


def resize_of(processor: Any) -> str:
    """How an image processor of transformers resizes and crops with Pillow."""

    def sides(size: Any) -> str:
        return " x ".join(f"{name} {value}" for name, value in dict(size or {}).items())

    method = Image.Resampling(processor.resample).name.lower()
    resized = f"Pillow {method} to {sides(processor.size)}" if processor.do_resize else "none"
    return f"{resized}, cropped to {sides(processor.crop_size)}" if processor.do_center_crop else resized


def square(image: np.ndarray, side: int) -> np.ndarray:
    height, width = image.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    cropped = Image.fromarray(image[top : top + short, left : left + short])
    return np.asarray(cropped.resize((side, side), Image.Resampling.BICUBIC))


def load(kind: Any, model: str, **options: Any) -> Any:
    """`kind.from_pretrained` with a message for people who have no connection.

    Raises:
        OSError: the model cannot be had.
    """
    try:
        return kind.from_pretrained(model, **options)
    except OSError as error:
        raise OSError(
            f"{model} is neither a folder of a model with safetensors weights nor in the Hub's cache, and could not "
            f"be downloaded ({str(error).splitlines()[0]}); run `hf download {model}` where there is a connection, or "
            "name a folder."
        ) from error


def weights_of(model: str) -> str:
    """The model's name and the hash of its weights: of the files of a folder, of the Hub's commit."""
    folder = Path(model)
    if folder.is_dir():
        files = sorted(folder.glob("*.safetensors"))
        return f"{folder.name} sha256:{digest([sha256(path) for path in files])}"
    return f"{model} commit:{load(transformers.AutoConfig, model)._commit_hash}"
