"""From a row of a data set to the captions of its image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from .celeba import ATTRIBUTES, describe_face
from .class_names import CIFAR10, class_wordings, first_name, read_synset_words
from .records import MissingCaption, as_texts

CAPTION_COLUMNS = ("text", "caption", "captions", "txt", "prompt", "description", "json", "en")
LABEL_COLUMNS = ("label", "labels", "cls", "class", "fine_label", "img_label")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RowCaptions:
    """All wordings for a row.

    Args:
        columns: those that are looked at.
        from_text: whether a text file beside an image serves as well.
    """

    build: Callable[[Row], tuple[str, ...]]
    columns: tuple[str, ...] = ()
    from_text: bool = False

    def __call__(self, row: Row) -> tuple[str, ...]:
        """At least one.

        Raises:
            MissingCaption: the row says nothing of its image.
            ValueError: the column holds no captions at all, but something else.
        """
        texts = self.build(row)
        if not texts:
            raise MissingCaption("has an empty caption")
        return texts


@dataclass(frozen=True)
class CaptionBuilders:
    """The builder a user asked for, by name, still without a data set.

    Args:
        name: one of `BUILDERS`.
        column: of captions or labels; guessed if None.
        folder: where to look for `synset_words.txt` (ImageNet's classes), if the data lies in a folder.
    """

    name: str = "text"
    column: str | None = None
    folder: str | None = None

    def __post_init__(self):
        if self.name not in BUILDERS:
            raise ValueError(f"`captions` must be one of {', '.join(BUILDERS)}, got {self.name!r}.")

    def for_columns(self, columns: Sequence[str], class_names: Mapping[str, list[str]], where: str) -> RowCaptions:
        """Captions of a data set with these columns.

        Args:
            class_names: of columns that hold numbers of classes.
            where: the data set, for messages.

        Raises:
            ValueError: a column is missing.
        """
        return BUILDERS[self.name](self, Columns(list(columns), dict(class_names), where))


@dataclass(frozen=True)
class Columns:
    names: list[str]
    class_names: dict[str, list[str]] = field(default_factory=dict)
    where: str = "the data set"

    def choose(self, asked: str | None, usual: Sequence[str], option: str, wanted: str) -> str:
        """The column `asked` for, or the first of the `usual` ones.

        Raises:
            ValueError: there is none; the message lists the columns.
        """
        if asked is not None:
            if asked in self.names:
                return asked
            raise ValueError(f"`{option}` must be a column of {self.where}, got {asked!r}; {self.listed()}.")
        lower = {name.lower(): name for name in reversed(self.names)}
        for name in usual:
            if name in lower:
                return lower[name]
        raise ValueError(
            f"{self.where} must have a column of {wanted}, such as {', '.join(usual[:4])}; {self.listed()}. "
            f"Name it by `{option}`."
        )

    def listed(self) -> str:
        return f"its columns are {', '.join(self.names) or 'none'}"


def from_column(builders: CaptionBuilders, columns: Columns) -> RowCaptions:
    """What stands in a column; of a JSON object its `caption`."""
    if not columns.names or (builders.column is None and columns.names == ["label"]):  # a folder without tables
        return RowCaptions(lambda row: (), from_text=True)
    column = columns.choose(builders.column, CAPTION_COLUMNS, "caption_column", "captions")

    def build(row: Row) -> tuple[str, ...]:
        value = row.get(column)
        if isinstance(value, Mapping):
            value = next((value[name] for name in CAPTION_COLUMNS if value.get(name)), None)
        return as_texts(value, f"the column `{column}` of {columns.where}")

    return RowCaptions(build, (column,), from_text=True)


def unconditional(builders: CaptionBuilders, columns: Columns) -> RowCaptions:
    return RowCaptions(lambda row: ("",))


def from_class(words: Callable[[str], tuple[str, ...]], known: Sequence[str] = ()):
    """Builders for data sets of classes: `words` of the class's name.

    `known` names the classes of labels that are numbers in a data set that does not name them.
    """

    words_of = cache(words)  # one tuple for all images of a class

    def make(builders: CaptionBuilders, columns: Columns) -> RowCaptions:
        column = columns.choose(builders.column, LABEL_COLUMNS, "caption_column", "class labels")
        names = columns.class_names.get(column) or list(known)
        synsets = read_synset_words(builders.folder) if builders.folder else {}

        def build(row: Row) -> tuple[str, ...]:
            name = class_name(row.get(column), names, columns.where)
            return words_of(synsets.get(name, name))

        return RowCaptions(build, (column,))

    return make


def class_name(label: Any, names: Sequence[str], where: str) -> str:
    """The name of a label that may be a number, a number as text, or the name itself.

    Raises:
        MissingCaption: there is none, or a number that no class has.
    """
    text = str(label).strip()
    if label is None or not text:
        raise MissingCaption("has no class label")
    if not text.lstrip("-").isdigit():
        return text
    if not 0 <= int(text) < len(names):
        raise MissingCaption(f"has the class label {text}, but {where} names {len(names)} classes")
    return names[int(text)]


def celeba(builders: CaptionBuilders, columns: Columns) -> RowCaptions:
    missing = [name for name in ATTRIBUTES if name not in columns.names]
    if missing:
        raise ValueError(
            f"`captions='celeba'` must find CelebA's 40 attributes in {columns.where} (columns, or "
            f"list_attr_celeba.txt), but {len(missing)} are missing: {', '.join(missing[:3])}...; {columns.listed()}."
        )

    def build(row: Row) -> tuple[str, ...]:
        if any(row.get(name) is None for name in ATTRIBUTES):
            raise MissingCaption("has no attributes")
        return describe_face({name for name in ATTRIBUTES if str(row[name]).strip() in ("1", "True", "true")})

    return RowCaptions(build, ATTRIBUTES)


def bare(name: str) -> tuple[str, ...]:
    return (first_name(name),)


BUILDERS = {
    "text": from_column,
    "none": unconditional,
    "class": from_class(bare),
    "class-text": from_class(class_wordings),
    "cifar10": from_class(class_wordings, CIFAR10),
    "cifar10-class": from_class(bare, CIFAR10),
    "imagenet": from_class(class_wordings),
    "imagenet-class": from_class(bare),
    "celeba": celeba,
}
