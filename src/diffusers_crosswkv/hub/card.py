"""The model card: `model_card.md` filled with what is known of a model, and the front matter that the Hub reads."""

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .adapter import LORA, STATE, SavedAdapter
from .facts import FROM_SCRATCH, ModelFacts
from .folder import SavedPipeline

TEMPLATE = "model_card.md"
TASK = "text-to-image"
TAGS = (TASK, "diffusers", "crosswkv", "rwkv")
UNKNOWN = "unknown"
SUMMARIES = {
    None: "A text-to-image model.",
    LORA: "A LoRA of a text-to-image model.",
    STATE: "A prompt state of a text-to-image model: its initial states, trained.",
}


def make_model_card(
    facts: ModelFacts,
    repo_id: str,
    saved: SavedPipeline | SavedAdapter | None = None,
    images: Mapping[str, str] | None = None,
    grid: str | None = None,
) -> ModelCard:
    """The card of a repository, to be saved as its `README.md`.

    Args:
        facts: what is known of the model.
        repo_id: `user/name`, where it will lie.
        saved: what [`read_saved_pipeline`] or [`read_saved_adapter`] read; the rows about the
            model are left out without it.
        images: `{prompt: path in the repository}` of sample images, for the gallery.
        grid: path in the repository of one picture of many samples.

    Returns:
        A `ModelCard` whose front matter holds library, task, tags and, as far as they are known, licence, languages,
        data sets, base model, samples and metrics.
    """
    call = [json.dumps(facts.example_prompt or "your prompt", ensure_ascii=False)]
    for name in ("guidance_scale", "num_inference_steps"):
        if getattr(facts, name) is not None:
            call.append(f"{name}={getattr(facts, name)}")
    adapter = saved if isinstance(saved, SavedAdapter) else None
    pipeline = None if isinstance(saved, SavedAdapter) else saved
    own_pipeline = saved is None or saved.has_pipeline_code
    return ModelCard.from_template(
        card_data(facts, repo_id, images or {}, adapter),
        template_str=template(),
        name=facts.name or repo_id.split("/")[-1],
        summary=facts.summary or SUMMARIES[adapter.kind if adapter else None],
        grid=grid,
        repo_id=repo_id,
        call=", ".join(call),
        adapter=adapter and adapter.kind,
        adapter_file=adapter and adapter.path.name,
        base=facts.base_model or "the pipeline that this was trained on",
        fusion=pipeline and pipeline.unet_config.get("crosswkv_fusion"),
        trust='custom_pipeline="pipeline", trust_remote_code=True' if own_pipeline else "trust_remote_code=True",
        model_rows=[(what, cell(value)) for what, value in model_rows(saved)],
        training_rows=[(what, cell(value)) for what, value in training_rows(facts)],
        metrics=[{name: cell(value) for name, value in vars(metric).items()} for metric in facts.metrics],
        limits=facts.limits,
        license=license_text(facts),
    )


def card_data(
    facts: ModelFacts, repo_id: str, images: Mapping[str, str], adapter: SavedAdapter | None = None
) -> ModelCardData:
    """The front matter; what is not known is not in it."""
    widget: list[dict[str, Any]] = [{"text": text, "output": {"url": path}} for text, path in images.items()]
    if not widget and facts.example_prompt:
        widget = [{"text": facts.example_prompt}]
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=metric.dataset_type,
            dataset_name=metric.dataset,
            metric_type=metric.type,
            metric_name=metric.name,
            metric_value=metric.value,
        )
        for metric in facts.metrics
    ]
    known: dict[str, Any] = {
        "license": facts.license,
        "license_name": facts.license_name,
        "license_link": facts.license_link,
        "language": list(facts.language),
        "datasets": list(facts.datasets),
        "base_model": None if facts.base_model == FROM_SCRATCH else facts.base_model,
        "metrics": list(dict.fromkeys(metric.type for metric in facts.metrics)),
        "widget": widget,
        "eval_results": results,
        "model_name": (facts.name or repo_id.split("/")[-1]) if results else None,
    }
    known = {name: value for name, value in known.items() if value}
    tags = [*TAGS, *([] if adapter is None else ["lora" if adapter.kind == LORA else "prompt-state"])]
    return ModelCardData(library_name="diffusers", pipeline_tag=TASK, tags=tags, **known)


def model_rows(saved: SavedPipeline | SavedAdapter | None) -> list[tuple[str, object]]:
    if saved is None:
        return []
    if isinstance(saved, SavedAdapter):
        return [("file", f"`{saved.path.name}`"), ("numbers in it", f"{saved.numbers:,}")]
    names = {name: cls for name, (_, cls) in saved.components.items()}
    unet, everything = saved.parameters
    rows: list[tuple[str, object]] = [
        ("pipeline", f"`{saved.pipeline_class}`"),
        ("parameters", f"{unet:,} in the U-Net, {everything:,} in all"),
        ("text encoder", f"`{names['text_encoder']}`" if "text_encoder" in names else None),
        ("image space", f"latents of `{names['vae']}`" if "vae" in names else "pixels"),
        ("fusion of text and image", saved.unet_config.get("crosswkv_fusion")),
    ]
    return [(what, value) for what, value in rows if value is not None]


def training_rows(facts: ModelFacts) -> list[tuple[str, object]]:
    rows: Sequence[tuple[str, object]] = [
        ("base model", facts.base_model),
        ("data", facts.data or ", ".join(facts.datasets) or None),
        ("captions", facts.captions),
        ("steps", facts.steps and f"{facts.steps:,}"),
        ("batch size", facts.batch_size),
        ("hardware", facts.hardware),
        ("time", None if facts.training_seconds is None else duration(facts.training_seconds)),
    ]
    return [(what, UNKNOWN if value is None else value) for what, value in rows]


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def license_text(facts: ModelFacts) -> str:
    if facts.license is None:
        return "Unknown: ask the author before you use the weights."
    return f"[{facts.license_name}]({facts.license_link})" if facts.license_name else f"`{facts.license}`"


def cell(value: object) -> str:
    """A table cell: one line, no bar."""
    return " ".join(str(value).split()).replace("|", "\\|")


def template() -> str:
    """The text of `model_card.md`: in the installed package, or at the root of the repository."""
    packaged = resources.files(__package__) / TEMPLATE
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return Path(__file__).parents[3].joinpath(TEMPLATE).read_text(encoding="utf-8")
