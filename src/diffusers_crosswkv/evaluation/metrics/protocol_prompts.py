"""Prompts of a protocol: captions of its data set, as training makes them."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ...data.caption_builders import CaptionBuilders
from ...data.class_names import CIFAR10, SYNSET_FILES, class_wordings, read_synset_words
from ...data.folder_tables import CELEBA_TABLES, read_celeba
from .protocols import PROTOCOLS

IMAGENET_CLASSES = 1_000

Wordings = list[tuple[str, ...]]


def protocol_prompts(name: str, path: Path | None = None) -> tuple[str, ...]:
    """One per sample: the classes in turn, or faces from all over CelebA's table, and the wordings of each in turn.

    Args:
        path: where ImageNet's names or CelebA's attributes are, or what lies beside them.

    Raises:
        ValueError: they are not there.
    """
    protocol = PROTOCOLS[name]
    rows = WORDINGS[protocol.captions](protocol.num_samples, path)
    turns = [divmod(i, len(rows)) for i in range(protocol.num_samples)]
    return tuple(rows[place][(turn + place) % len(rows[place])] for turn, place in turns)


def cifar10(count: int, path: Path | None) -> Wordings:
    return [class_wordings(name) for name in CIFAR10]


def imagenet(count: int, path: Path | None) -> Wordings:
    names = {} if path is None else read_synset_words(str(path))
    if len(names) != IMAGENET_CLASSES:
        raise not_there(f"ImageNet's {IMAGENET_CLASSES} class names", SYNSET_FILES, len(names), path)
    return [class_wordings(name) for name in names.values()]


def celeba(count: int, path: Path | None) -> Wordings:
    """Of `count` faces, evenly spread."""
    rows = [] if path is None else list(read_celeba(path).values())
    if not rows:
        raise not_there("CelebA's attributes", CELEBA_TABLES, 0, path)
    captions = CaptionBuilders("celeba").for_columns(list(rows[0]), {}, str(path))
    return [captions(rows[i * len(rows) // count]) for i in range(count)]


def not_there(what: str, files: Sequence[str], found: int, path: Path | None) -> ValueError:
    where = "and no folder to look in" if path is None else f"in or beside {path}"
    return ValueError(
        f"The prompts must be made of {what}, from {' or '.join(files)}, got {found} {where}; name the folder of that "
        "file (--captions_from), or give prompts of your own (--prompts_file)."
    )


WORDINGS: dict[str, Callable[[int, Path | None], Wordings]] = {
    "cifar10": cifar10,
    "celeba": celeba,
    "imagenet": imagenet,
}
