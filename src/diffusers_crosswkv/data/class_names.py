"""Names of classes, and captions made of them."""

import re
from pathlib import Path

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TEMPLATES = ("{a}", "a photo of {a}", "a picture of {a}", "{a} in a photo", "an image that shows {a}")
SYNSET_FILES = ("LOC_synset_mapping.txt", "synset_words.txt")
SPOKEN_VOWEL = re.compile(r"(?!eu|uni|use|uku|one\b)[aeiou]|hour|heir|honest|x-?ray", re.IGNORECASE)
PLURAL = re.compile(r"(?<![aius])s$", re.IGNORECASE)  # binoculars, but no bus, mantis, glass or gas


def first_name(name: str) -> str:
    """Of a list such as ImageNet's "tench, Tinca tinca"; underscores are spaces."""
    return " ".join(name.split(",")[0].replace("_", " ").split())


def class_wordings(name: str) -> tuple[str, ...]:
    """Captions of a class; each of its names (separated by commas) comes in every template."""
    names = dict.fromkeys(first_name(part) for part in name.split(",") if part.strip())
    return tuple(template.format(a=with_article(one)) for one in names for template in TEMPLATES)


def with_article(noun: str) -> str:
    """ "a bus", "an hourglass"; nothing before what ends like a plural."""
    if PLURAL.search(noun):
        return noun
    return f"{'an' if SPOKEN_VOWEL.match(noun) else 'a'} {noun}"


def read_synset_words(folder: str) -> dict[str, str]:
    """ImageNet's classes by synset ("n01440764": "tench, Tinca tinca"), from the folder or the two above it."""
    root = Path(folder).expanduser().resolve()
    for place in (root, *root.parents[:2]):
        for name in SYNSET_FILES:
            if (place / name).is_file():
                lines = (place / name).read_text(encoding="utf-8").splitlines()
                return dict(line.strip().split(" ", 1) for line in lines if " " in line.strip())
    return {}
