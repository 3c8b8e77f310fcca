"""What is known of a trained model: the model card says this and nothing else."""

import dataclasses
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import write_json

FROM_SCRATCH = "from scratch"
REPOSITORY_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")
LANGUAGE_CODE = re.compile(r"[a-z]{2,3}|multilingual")


@dataclass(frozen=True)
class Metric:
    """One measured number.

    Args:
        name: in words, for the card.
        type: the Hub's name of the metric, such as `accuracy` or `fid`.
        value: what was measured.
        dataset: what it was measured on, in words.
        dataset_type: the Hub id of that data set, or any short name if it has none.
        how: the command or procedure.
    """

    name: str
    type: str
    value: float
    dataset: str
    dataset_type: str
    how: str


@dataclass(frozen=True)
class ModelFacts:
    """Everything may be unknown: what is None or empty is left out of the card or called unknown, never guessed.

    Args:
        name: of the model; the repository's if None.
        summary: one sentence.
        license: the Hub's identifier in lower case, such as `apache-2.0`, or `other` with `license_name` and
            `license_link`.
        language: ISO 639 codes of the languages of its prompts.
        base_model: Hub id of the model that this one was trained from, or `FROM_SCRATCH`.
        datasets: Hub ids of the training data; data that is not on the Hub is described in `data`.
        data: what the images are, and how many.
        captions: what the captions are and who wrote them.
        steps: optimizer steps.
        batch_size: images per step.
        hardware: what it was trained on.
        training_seconds: how long.
        metrics: measured numbers.
        limits: what it cannot do, a sentence each.
        example_prompt, guidance_scale, num_inference_steps: for the example; the last two the pipeline's if None.

    Raises:
        ValueError: an identifier or a number that cannot be right.
    """

    name: str | None = None
    summary: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()
    base_model: str | None = None
    datasets: tuple[str, ...] = ()
    data: str | None = None
    captions: str | None = None
    steps: int | None = None
    batch_size: int | None = None
    hardware: str | None = None
    training_seconds: float | None = None
    metrics: tuple[Metric, ...] = ()
    limits: tuple[str, ...] = ()
    example_prompt: str | None = None
    guidance_scale: float | None = None
    num_inference_steps: int | None = None

    def __post_init__(self):
        if self.license is not None and self.license != self.license.lower():
            raise ValueError(f"`license` must be the Hub's identifier, in lower case, got {self.license!r}.")
        if self.license == "other" and not (self.license_name and self.license_link):
            raise ValueError("`license='other'` needs `license_name` and `license_link`, got none or one of them.")
        for code in self.language:
            if not LANGUAGE_CODE.fullmatch(code):
                raise ValueError(f"`language` must hold ISO 639 codes such as 'en', got {code!r}.")
        base_models = [self.base_model] if self.base_model not in (None, FROM_SCRATCH) else []
        for what, names in (("datasets", self.datasets), ("base_model", base_models)):
            for name in names:
                if not REPOSITORY_ID.fullmatch(name or ""):
                    raise ValueError(f"`{what}` must be a Hub id such as 'user/name', got {name!r}.")
        for what in ("steps", "batch_size", "num_inference_steps"):
            number = getattr(self, what)
            if number is not None and number < 1:
                raise ValueError(f"`{what}` must be at least 1, got {number}; None if it is not known.")


def load_facts(path: str | os.PathLike) -> ModelFacts:
    """Read a JSON object with the fields of [`ModelFacts`].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON object, or holds an unknown field or a value that cannot be right.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        fields = dict(values)
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must hold a JSON object with the fields of ModelFacts, but: {error}.") from error
    check_fields(path, fields, ModelFacts)
    for metric in fields.get("metrics", ()):
        check_fields(path, metric, Metric)
    tuples: dict[str, Any] = {name: tuple(fields.get(name, ())) for name in ("language", "datasets", "limits")}
    tuples["metrics"] = tuple(Metric(**metric) for metric in fields.get("metrics", ()))
    return ModelFacts(**{**fields, **tuples})


def check_fields(path: str | os.PathLike, values: dict[str, Any], cls: type) -> None:
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"{path} must hold fields of {cls.__name__}, {unknown} is none; there are {sorted(known)}.")


def save_facts(facts: ModelFacts, path: str | os.PathLike) -> None:
    """Write the JSON file that [`load_facts`] reads, without what is unknown."""
    values = {name: value for name, value in dataclasses.asdict(facts).items() if value not in (None, ())}
    write_json(Path(path), values, indent=2)
