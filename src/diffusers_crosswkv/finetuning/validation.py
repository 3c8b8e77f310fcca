"""How a run is watched from step to step: pictures of the same prompts, and the loss of the same examples."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image

from ..data.examples import BrokenImage, Example
from ..files import write_whole
from ..generation.contact_sheet import contact_sheet
from ..generation.run import png
from ..training.callbacks import Callback, StepMetrics
from ..training.denoiser import Denoiser, initial_prompt_state
from ..training.objective import Draw
from .config import ValidationSettings
from .models import Start
from .records import Records

if TYPE_CHECKING:
    from ..training.run import Run

VALIDATION_DIR = "validation"
TIMES_PER_EXAMPLE = 4
DRAWN_TIMES = 4096  # their quantiles stand for the distribution that training draws from
AT_ONCE = 16  # in one forward pass


class Validation(Callback):
    """Before the first step, every `validation_steps` steps and after the last one, with the averaged weights.

    The work is shared out among the processes: a picture, like a part of the loss, is made by one of them, and what it
    is does not depend on how many there are.

    Args:
        start: the models that are trained.
        settings: prompts, steps, seeds.
        examples: held out, for the loss.
        records: where the findings go.
        folder: for the pictures.
    """

    def __init__(
        self,
        start: Start,
        settings: ValidationSettings,
        prompts: Sequence[str],
        examples: Sequence[Example],
        records: Records,
        folder: Path,
    ):
        self.begin, self.settings, self.prompts, self.records = start, settings, tuple(prompts), records
        self.examples, self.folder = list(examples), folder
        self.broken: list[tuple[str, str]] = []
        self._questions: list[Questions] | None = None

    def start(self, run: "Run") -> None:
        if run.step == 0:
            self.validate(run, 0)

    def step(self, run: "Run", metrics: StepMetrics) -> None:
        if metrics.step % self.settings.validation_steps == 0 or metrics.step == run.config.max_train_steps:
            self.validate(run, metrics.step)

    def validate(self, run: "Run", step: int) -> None:
        """Draw and measure; called on every process."""
        with run.averaged_weights() as denoiser:
            if self.examples:
                loss = self.loss(run, denoiser)
                if run.accelerator.is_main_process and loss is not None:
                    self.records.validation(step, validation_loss=loss)
            if self.prompts:
                sheet = self.sheet(run, denoiser, step)
                if run.accelerator.is_main_process:
                    write_whole(picture_path(self.folder, step), png(sheet))
                    self.records.picture("validation", sheet, step)
        run.accelerator.wait_for_everyone()

    @torch.no_grad()
    def loss(self, run: "Run", denoiser: Denoiser) -> float | None:
        """The loss of the held-out examples, the same number to the last bit for the same weights; None of none."""
        if self._questions is None:
            self._questions = self.ask(run)
        own = range(run.accelerator.process_index, len(self._questions), run.accelerator.num_processes)
        answers = {i: self._questions[i].answer(run, denoiser) for i in own}
        found = {i: losses for part in run.gather_objects(answers) for i, losses in part.items()}
        losses = [loss for i in sorted(found) for loss in found[i]]
        return math.fsum(losses) / len(losses) if losses else None

    def ask(self, run: "Run") -> "list[Questions]":
        """Every example with its noise and times, in groups of one size."""
        generator = torch.Generator().manual_seed(0)
        times = run.objective.draw(generator, (DRAWN_TIMES, 1, 1, 1)).times.sort().values
        groups: dict[tuple[int, ...], list[Question]] = defaultdict(list)
        for i, example in enumerate(self.examples):
            try:
                loaded = run.latents.load(example)
            except BrokenImage as reason:
                self.broken.append((example.name, str(reason)))
                continue
            for j in range(TIMES_PER_EXAMPLE):
                quantile = (j * len(self.examples) + i + 0.5) / (TIMES_PER_EXAMPLE * len(self.examples))
                question = Question(loaded, example.caption, times[int(quantile * DRAWN_TIMES)], seed_of(i, j))
                groups[example.size].append(question)
        return [
            Questions(group[start : start + AT_ONCE])
            for group in groups.values()
            for start in range(0, len(group), AT_ONCE)
        ]

    @torch.no_grad()
    def sheet(self, run: "Run", denoiser: Denoiser, step: int) -> Image.Image:
        """One labelled picture of all prompts, a row each; a column per seed."""
        settings, accelerator = self.settings, run.accelerator
        pipeline = self.pipeline(run, denoiser)
        state = initial_prompt_state(denoiser) if run.config.weights == "state" else None
        own = range(accelerator.process_index, len(self.prompts), accelerator.num_processes)
        with torch.random.fork_rng():
            rows = {i: self.row(run, pipeline, self.prompts[i], state) for i in own}
        images = {i: row for part in run.gather_objects(rows) for i, row in part.items()}
        seeds = [settings.validation_seed + n for n in range(settings.num_validation_images)]
        name = Path(run.config.output_dir).name
        return contact_sheet([images[i] for i in sorted(images)], self.prompts, seeds, f"{name}, step {step:,}")

    def row(self, run: "Run", pipeline: Any, prompt: str, state: Any) -> list[Image.Image]:
        """The pictures of one prompt."""
        settings, count = self.settings, self.settings.num_validation_images
        generators = [torch.Generator().manual_seed(settings.validation_seed + n) for n in range(count)]
        with run.accelerator.autocast():
            latents = pipeline(
                prompt,
                height=self.begin.resolution,
                width=self.begin.resolution,
                num_inference_steps=settings.validation_inference_steps,
                guidance_scale=settings.validation_guidance_scale,
                num_images_per_prompt=count,
                generator=generators,
                prompt_state=state,
                output_type="latent",
            ).images
        images = pipeline.decode_latents(latents)  # in its own precision: VAEs overflow in float16
        return pipeline.image_processor.postprocess(images, output_type="pil", do_denormalize=[True] * count)

    def pipeline(self, run: "Run", denoiser: Denoiser) -> Any:
        """One of the weights of `denoiser`."""
        text_encoder = denoiser.text_encoder or run.models.text_encoder
        models = dataclasses.replace(run.models, unet=denoiser.unet, text_encoder=text_encoder)
        pipeline = dataclasses.replace(self.begin, models=models).pipeline()
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


class Question(NamedTuple):
    """An example, and where on the way from noise to image it is asked for."""

    loaded: Any
    caption: str
    time: torch.Tensor
    seed: int


@dataclasses.dataclass(frozen=True)
class Questions:
    """Some of one size."""

    questions: Sequence[Question]

    def answer(self, run: "Run", denoiser: Denoiser) -> list[float]:
        """The loss of each."""
        generators = [torch.Generator().manual_seed(question.seed) for question in self.questions]
        samples = run.latents.draw([question.loaded for question in self.questions], generators)
        samples = samples.to(run.accelerator.device)
        noise = torch.cat([run.objective.draw(generator, (1, *samples.shape[1:])).noise for generator in generators])
        draw = Draw(noise, torch.stack([question.time for question in self.questions])).to(samples.device)
        noisy = run.objective.noisy(samples, draw)
        captions = [question.caption for question in self.questions]
        with run.accelerator.autocast():
            if denoiser.text_encoder is None:
                prediction = denoiser(noisy, draw.times, *run.prompts.encode(captions))
            else:
                prediction = denoiser(noisy, draw.times, captions=captions)
        return run.objective.per_sample(prediction, samples, draw).tolist()


def seed_of(example: int, time: int) -> int:
    """A seed of their own for every example and time."""
    return 2**20 * example + time


def picture_path(folder: Path, step: int) -> Path:
    return folder / VALIDATION_DIR / f"step-{step:06d}.png"


def latest_picture(folder: Path) -> Path | None:
    """The sheet of the last validation, if there was one."""
    return max((folder / VALIDATION_DIR).glob("step-*.png"), default=None)
