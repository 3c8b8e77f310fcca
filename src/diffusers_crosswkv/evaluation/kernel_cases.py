"""What the kernel benchmark measures: shapes, and what the sides of a comparison have in common."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..models.crosswkv import DEFAULT_FEATURE_MAPS

HEAD_DIM = 64
STOCK_HEADS = 8  # of Stable Diffusion 1.5, at every width
TEXT_DIM = 768
KINDS = ("layer", "text", "attention", "scan")
CROSSWKV_LAYERS = {"crosswkv": DEFAULT_FEATURE_MAPS["state"], "crosswkv, identity": "identity"}  # and feature maps

SCANNED = (16, 77, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536)
TEXT_LENGTHS = (16, 77, 128, 256, 512, 1024, 2048, 4096, 8192)
IMAGE_TOKENS = (64, 256, 1024, 4096, 16384, 65536)
PLOTTED_LENGTHS = (77, 2048)
WIDTHS = (320, 640, 1280)
STABLE_DIFFUSION = ((320, 4096), (640, 1024), (1280, 256))  # width, image tokens


@dataclass(frozen=True)
class Case:
    """One comparison, at one shape.

    `tokens` are scanned in a `scan` and read in a `layer` or `attention`; a `text` has `text_tokens` alone.
    """

    kind: str
    direction: str  # forward, or forward+backward
    batch: int
    width: int
    tokens: int | None = None
    text_tokens: int | None = None

    @property
    def heads(self) -> int:
        return self.width // HEAD_DIM

    @property
    def backward(self) -> bool:
        return self.direction != "forward"

    @property
    def size(self) -> int:
        """By which cases are put in order."""
        return self.batch * self.width * ((self.tokens or 0) + (self.text_tokens or 0))


@dataclass(frozen=True)
class Side:
    """One implementation of a case, its tensors made.

    `error` is the relative RMS difference from float64, at the part of the shape that `error_at` names.
    """

    call: Callable[[], object]
    minimal_bytes: int
    error: Callable[[], float] | None = None
    error_at: str = ""


Sides = Mapping[str, Callable[[], Side]]


@dataclass(frozen=True)
class Estimate:
    """What is known of a side before its tensors are made."""

    work: float  # grows with the time of a call, for guessing it from smaller cases
    memory: int  # bytes


def cases(device_type: str, quick: bool = False, kinds: tuple[str, ...] = KINDS) -> list[Case]:
    """All cases of a run, the small ones of each kind first.

    Without a GPU layers have one batch size. On a GPU scans come first: what a run is too short for is less needed.
    """
    batches = (2,) if quick or device_type == "cpu" else (2, 16)
    made = {
        "layer": [Case("layer", "forward", b, *shape) for b in batches for shape in layer_shapes(quick)],
        "attention": [
            Case("attention", "forward", b, *shape)
            for b in batches
            for shape in layer_shapes(quick)
            if not quick or shape[-1] == 77
        ],
        "text": [
            Case("text", "forward", b, width, None, length)
            for b in batches
            for width in WIDTHS
            for length in ((77,) if quick else TEXT_LENGTHS)
        ],
        "scan": [
            Case("scan", direction, b, width, tokens)
            for direction in ("forward", "forward+backward")
            for b in ((2,) if quick else (2, 16))
            for width in (WIDTHS[:1] if quick else WIDTHS)
            for tokens in (SCANNED[:2] if quick else SCANNED)
        ],
    }
    in_order = KINDS if device_type == "cpu" else sorted(KINDS, key=lambda kind: kind != "scan")
    return [case for kind in in_order if kind in kinds for case in sorted(made[kind], key=lambda case: case.size)]


def layer_shapes(quick: bool = False) -> list[tuple[int, int, int]]:
    """Width, image tokens, text tokens: those of Stable Diffusion, and more image tokens for the plots."""
    lengths = TEXT_LENGTHS[:2] if quick else TEXT_LENGTHS
    shapes = [(width, tokens, length) for width, tokens in STABLE_DIFFUSION for length in lengths]
    if not quick:
        shapes += [(WIDTHS[0], tokens, length) for tokens in IMAGE_TOKENS for length in PLOTTED_LENGTHS]
    return list(dict.fromkeys(shapes))


def scan_bytes(
    batch: int, tokens: int, heads: int, head_dim: int, value_dim: int, dtype: torch.dtype, backward: bool = False
) -> int:
    """What a scan must at least read and write, every tensor in `dtype`.

    Forward reads r, w, k, kappa, a and v and writes o; backward reads them again with o's gradient and writes six.
    In bfloat16 with K = V = 64 that is 896 bytes per token and head forward, 2,560 both ways.
    """
    inputs, output = 5 * head_dim + value_dim, value_dim
    numbers = inputs + output + (inputs + output + inputs if backward else 0)
    return batch * tokens * heads * numbers * dtype.itemsize


def relative_rms(value: torch.Tensor, reference: torch.Tensor) -> float:
    """RMS of the difference over RMS of the reference."""
    reference = reference.double()
    return ((value.double() - reference).norm() / reference.norm().clamp_min(1e-300)).item()


def tensor_bytes(*tensors: torch.Tensor) -> int:
    return sum(x.nbytes for x in tensors)
