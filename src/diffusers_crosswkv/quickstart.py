"""The shortest way through the whole library: train on real digits, save, load in a new process, draw, judge."""

import json
import os
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from PIL import Image, ImageDraw, ImageFont

from .data.digits import LANGUAGES, all_captions, caption, load_digits
from .environment import environment
from .evaluation.digits import Agreement, DigitJudge, agreement
from .hub import FROM_SCRATCH, Metric, ModelFacts
from .models import DIR7UNet2DConditionModel
from .pipelines import DIR7Pipeline
from .pipelines.prompt_encoding import ENDOFTEXT
from .pipelines.saving import save_whole
from .presets import load_preset
from .training import Models, TrainingConfig, train
from .training.config import RUN_FILE
from .training.text import fit_tokenizer, make_text_encoder

NOISE_SCHEDULE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
GUIDANCE_SCALE = 2.0
NUM_INFERENCE_STEPS = 50
PIPELINE_DIR = "pipeline"
REPORT_FILE = "report.json"
LANGUAGE_CODES = {"English": "en", "Chinese": "zh", "Spanish": "es", "French": "fr"}


@dataclass(frozen=True)
class DigitsReport:
    """What drawing and judging found; times in seconds."""

    agreement: Agreement
    held_out_accuracy: float
    picture: str
    load_seconds: float
    generate_seconds: float
    training_seconds: float | None
    environment: dict[str, str | int]


def train_digits(output_dir: str | os.PathLike, max_train_steps: int = 1200, seed: int = 0) -> tuple[Path, float]:
    """Train `dir7_tiny` with a small CLIP text encoder and write the pipeline to `output_dir/pipeline`.

    Goes on where an interrupted call stopped; a finished one is only saved again. Returns the pipeline's folder and
    the seconds that training took, over all calls.

    Raises:
        FileExistsError, ValueError, FloatingPointError, TrainingInterrupted: see [`train`].
    """
    config = TrainingConfig(output_dir, max_train_steps, seed=seed)
    target = Path(output_dir, PIPELINE_DIR)
    torch.manual_seed(seed)
    tokenizer = fit_tokenizer(all_captions())
    preset = load_preset("dir7_tiny")
    models = Models(
        unet=DIR7UNet2DConditionModel.from_config(preset),
        text_encoder=make_text_encoder(tokenizer, preset["cross_attention_dim"], num_layers=2),
        tokenizer=tokenizer,
        scheduler=DDPMScheduler(**NOISE_SCHEDULE),
        text_prefix=ENDOFTEXT,
    )
    seconds = train(config, models, load_digits()).seconds
    scheduler = DPMSolverMultistepScheduler(**NOISE_SCHEDULE, thresholding=True, sample_max_value=1.0)
    pipeline = DIR7Pipeline(None, models.text_encoder, tokenizer, models.unet, scheduler)
    save_whole(pipeline, target)
    return target, seconds


def draw_digits(
    pipeline_dir: str | os.PathLike,
    picture: str | os.PathLike,
    num_images: int = 400,
    seed: int = 0,
    training_seconds: float | None = None,
) -> DigitsReport:
    """Load a pipeline, generate `num_images` digits (a multiple of 40) in four languages, judge them, draw a table.

    The table shows, per language and digit, the first picture that was generated, not the best.

    Raises:
        ValueError: `num_images` is no multiple of 40.
        OSError: there is no pipeline.
    """
    cells = [(language, digit) for language in LANGUAGES for digit in range(10)]
    if num_images < 1 or num_images % len(cells):
        raise ValueError(f"`num_images` must be a positive multiple of {len(cells)}, got {num_images}.")
    start = time.perf_counter()
    pipeline = DiffusionPipeline.from_pretrained(pipeline_dir)
    loaded = time.perf_counter()
    rng = random.Random(seed)
    asked = cells * (num_images // len(cells))
    images = pipeline(
        [caption(digit, language, rng) for language, digit in asked],
        num_inference_steps=NUM_INFERENCE_STEPS,
        guidance_scale=GUIDANCE_SCALE,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
    ).images.cpu()
    generated = time.perf_counter()
    judge = DigitJudge(load_digits())
    read = judge.read(images * 2 - 1)
    found = agreement([digit for _, digit in asked], [language for language, _ in asked], read)
    table = digit_table(images[: len(cells)].unflatten(0, (len(LANGUAGES), 10)), LANGUAGES)
    Path(picture).parent.mkdir(parents=True, exist_ok=True)
    table.save(picture)
    return DigitsReport(
        agreement=found,
        held_out_accuracy=judge.held_out_accuracy,
        picture=str(picture),
        load_seconds=round(loaded - start, 2),
        generate_seconds=round(generated - loaded, 2),
        training_seconds=training_seconds,
        environment=environment(pipeline.device),
    )


def digit_table(images: torch.Tensor, row_names: tuple[str, ...], cell: int = 64, gap: int = 6) -> Image.Image:
    """Images `[rows, columns, 1, height, width]` in [0, 1] as one labelled picture."""
    rows, columns = images.shape[:2]
    left, top = 96, 34
    table = Image.new("RGB", (left + columns * (cell + gap), top + rows * (cell + gap)), "white")
    draw = ImageDraw.Draw(table)
    font = ImageFont.load_default(size=18)
    for column in range(columns):
        x = left + column * (cell + gap) + cell // 2
        draw.text((x, top // 2), str(column), fill="black", font=font, anchor="mm")
    for row, name in enumerate(row_names):
        y = top + row * (cell + gap)
        draw.text((left - 12, y + cell // 2), name, fill="black", font=font, anchor="rm")
        for column in range(columns):
            pixels = (images[row, column, 0].clamp(0, 1) * 255).round().byte().numpy()
            picture = Image.fromarray(pixels).resize((cell, cell), Image.Resampling.NEAREST)
            table.paste(picture, (left + column * (cell + gap), y))
    return table


def describe(report: DigitsReport) -> str:
    """The report as lines for a person."""
    found = report.agreement
    lines = [
        f"classifier on {report.held_out_accuracy:.1%} of held-out real digits right (fitted on real digits only)",
        f"{found.overall:.1%} of {found.count} generated digits read as the prompt asked",
        *(f"  {language:8s} {share:.1%}" for language, share in found.per_language.items()),
        f"training {report.training_seconds:.1f} s" if report.training_seconds else "training done before",
        f"loading {report.load_seconds:.1f} s, generating {report.generate_seconds:.1f} s",
        f"picture: {report.picture}",
    ]
    return "\n".join(lines)


def write_report(report: DigitsReport, path: str | os.PathLike) -> None:
    Path(path).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")


def model_facts(output_dir: str | os.PathLike) -> ModelFacts:
    """What a finished quickstart in `output_dir` knows of its model, for the model card; no licence, which is yours.

    Raises:
        FileNotFoundError: training or report is missing: the quickstart has not been finished there.
    """
    settings, report = (
        json.loads(Path(output_dir, name).read_text(encoding="utf-8")) for name in (RUN_FILE, REPORT_FILE)
    )
    found, where = report["agreement"], report["environment"]
    trained_here = report["training_seconds"] is not None  # by the command that made the report, on its machine
    hardware = f"{where['threads']} of {where['cores']} CPU cores" if where["device"] == "cpu" else where["device"]
    how = (
        f"read by a classifier fitted on real digits, right on {report['held_out_accuracy']:.1%} of held-out ones; "
        f"{NUM_INFERENCE_STEPS} steps, guidance {GUIDANCE_SCALE:g}; `make quickstart`"
    )
    shares = {"in all languages": found["overall"], **{f"in {name}": x for name, x in found["per_language"].items()}}
    return ModelFacts(
        name="Digits from prompts in four languages",
        summary="Handwritten digits of 8 x 8 pixels from prompts in English, Chinese, Spanish and French.",
        language=tuple(LANGUAGE_CODES[name] for name in LANGUAGES),
        base_model=FROM_SCRATCH,
        data="scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, grey",
        captions="made from templates in four languages, digits in words or as numerals",
        steps=settings["max_train_steps"],
        batch_size=settings["batch_size"],
        hardware=hardware if trained_here else None,
        training_seconds=report["training_seconds"],
        metrics=tuple(
            Metric(f"read as the prompt asked, {which}", "accuracy", share, "generated digits", "generated", how)
            for which, share in shares.items()
        ),
        limits=(
            "It draws one grey digit of 8 x 8 pixels and nothing else.",
            "It was measured with the wordings of training: that shows that text reaches the picture, not that the "
            "model generalises.",
        ),
        example_prompt="a handwritten seven",
        guidance_scale=GUIDANCE_SCALE,
        num_inference_steps=NUM_INFERENCE_STEPS,
    )
