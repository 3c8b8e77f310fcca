"""Inception's weights: a file that is given, or torch-fidelity's, downloaded when first used."""

import hashlib
from pathlib import Path

import torch
from torch import hub

from .inception import InceptionV3

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_FILE = INCEPTION_URL.rsplit("/", 1)[-1]
INCEPTION_HASH = INCEPTION_FILE.removesuffix(".pth").rsplit("-", 1)[-1]  # how its SHA-256 begins


def find_inception_weights(path: Path | None) -> Path:
    """`path`, or the file in torch.hub's cache (torch-fidelity and torchmetrics keep it there too), or a download.

    Raises:
        FileNotFoundError: there is no file at `path`.
        OSError: the file cannot be downloaded; the message says where to put it.
    """
    if path is not None:
        if not path.is_file():
            raise FileNotFoundError(f"There are no Inception weights at {path}; {how_to_get_them()}")
        return path
    cached = Path(hub.get_dir(), "checkpoints", INCEPTION_FILE)
    if cached.is_file():
        return cached
    cached.parent.mkdir(parents=True, exist_ok=True)
    try:
        hub.download_url_to_file(INCEPTION_URL, str(cached), hash_prefix=INCEPTION_HASH)
    except (OSError, RuntimeError) as error:  # RuntimeError: another hash
        raise OSError(
            "FID, sFID, IS, KID, precision and recall need Inception's weights (96 MB), which could not be "
            f"downloaded ({error}); {how_to_get_them()}"
        ) from error
    return cached


def how_to_get_them() -> str:
    return (
        f"download {INCEPTION_URL} where there is a connection, and put it into {Path(hub.get_dir(), 'checkpoints')} "
        "or name it by --inception_weights."
    )


def load_inception(path: Path) -> InceptionV3:
    """The network with the weights of `path`, torch-fidelity's file or one with the same names.

    Raises:
        ValueError: the file holds something else.
    """
    with torch.device("meta"):
        network = InceptionV3()
    try:
        # The file is a third party's, in torch's format alone; weights_only=True builds tensors and runs no code.
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state, assign=True)
    except Exception as error:  # each kind of wrong file raises its own
        summary = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} must hold Inception's weights as torch-fidelity converted them ({summary}); {how_to_get_them()}"
        ) from error
    return network


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
