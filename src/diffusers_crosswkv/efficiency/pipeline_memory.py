"""What memory an image needs: pipelines are loaded from disk and drawn with in processes of their own, as users would.

The two sides take turns, option by option.
"""

import importlib.util
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig
from diffusers import TorchAoConfig as DiffusersTorchAoConfig
from tqdm.auto import tqdm
from transformers import TorchAoConfig as TransformersTorchAoConfig

from ..evaluation.kernel_benchmark import BenchmarkConfig, failure, significant
from ..evaluation.kernel_cases import Case, relative_rms
from ..evaluation.kernel_rows import Row, RowFile, about
from ..evaluation.training_speed import PEAK_BY, load_average
from .pipeline_process import Drawn, Order, in_fresh_process
from .pipeline_sides import SIDES, STATE, VAE_FACTOR, Pipelines, text_of_length

SIZE, LENGTH, STEPS = 256, 77, 50
PRESET, QUICK_PRESET, QUICK_SIZE, QUICK_LENGTH = "dir7_s", "dir7_tiny", 64, 10
STEPS_RUN = 5  # on a CPU; all steps cost the same
OWN = ("pipeline_memory", "pipeline_process", "pipeline_sides")
MEASURED_BY = ("resident_memory", *(f"../efficiency/{name}" for name in OWN))
KIND = "process: "  # begins the direction of these rows


@dataclass(frozen=True)
class Option:
    """A way to need less memory.

    Args:
        text_first: the prompts are encoded, the text encoder is dropped, and then comes the first step.
        int8: U-Net and text encoder were saved with 8 bit weights (torchao through Diffusers and transformers).
        dtype: of [`DTYPES`]; the run's if None.
    """

    text_first: bool = False
    int8: bool = False
    dtype: str | None = None

    @property
    def name(self) -> str:
        words = [self.dtype or "", "int8" if self.int8 else "", "text encoder dropped" if self.text_first else ""]
        return ", ".join(filter(None, words)) or "as loaded"


OPTIONS = (
    Option(),
    Option(text_first=True),
    Option(int8=True),
    Option(int8=True, text_first=True),
    Option(dtype="bfloat16"),
    Option(dtype="bfloat16", text_first=True),
)
QUICK_OPTIONS = [Option(), Option(int8=True, text_first=True)]


def save_pipelines(preset: str, folder: Path) -> None:
    """Both sides in float32, as `folder/<side>`."""
    pipelines = Pipelines.make(preset, torch.device("cpu"), torch.float32)
    for side, pipeline in zip(SIDES, (pipelines.softmax, pipelines.state), strict=True):
        pipeline.save_pretrained(folder / side)


def save_int8(folder: Path, target: Path) -> None:
    """A saved pipeline with 8 bit weights, quantized by torchao through Diffusers and transformers."""
    from torchao.quantization import Int8WeightOnlyConfig

    configs = {
        "unet": DiffusersTorchAoConfig(Int8WeightOnlyConfig()),
        "text_encoder": TransformersTorchAoConfig(Int8WeightOnlyConfig()),
    }
    quantized = PipelineQuantizationConfig(quant_mapping=configs)
    pipeline = DiffusionPipeline.from_pretrained(folder, quantization_config=quantized, dtype=torch.float32)
    pipeline.save_pretrained(target)


class MemoryMeasurement:
    """One run: measures what the file of rows lacks."""

    def __init__(self, config: BenchmarkConfig, progress: bool = True):
        self.config, self.progress = config, progress
        quick, on_cpu = config.quick, config.torch_device.type == "cpu"
        self.preset, size, length = (QUICK_PRESET, QUICK_SIZE, QUICK_LENGTH) if quick else (PRESET, SIZE, LENGTH)
        self.steps = 2 if quick else STEPS_RUN if on_cpu else STEPS
        self.options = QUICK_OPTIONS if quick else [x for x in OPTIONS if on_cpu or x.dtype is None]
        self.about = about(config.torch_device, config.torch_dtype, MEASURED_BY)
        self.about |= {"rounds": 1, "steps": STEPS, "steps_run": self.steps}
        self.size, self.length = size, length
        self.file = RowFile(config.rows_path)

    def run(self) -> None:
        missing = [x for x in self.options if not all(self.file.find(self.case(x), s, self.about) for s in SIDES)]
        if not missing:
            return
        with tempfile.TemporaryDirectory(prefix="pipelines-") as folder:
            save_pipelines(self.preset, Path(folder))
            plain: dict[str, Drawn] = {}
            for option in (bar := tqdm(missing, desc="memory", disable=not self.progress)):
                bar.set_postfix_str(option.name)
                rows = [self.row(option, side, Path(folder), plain) for side in SIDES]
                self.file.put(self.about | asdict(self.case(option)) | row for row in rows)

    def case(self, option: Option) -> Case:
        return Case(self.preset, KIND + option.name, 1, self.size, (self.size // VAE_FACTOR) ** 2, self.length)

    def row(self, option: Option, side: str, folder: Path, plain: dict[str, Drawn]) -> Row:
        """Of one process; `plain` are those without options, made when they are first needed."""
        row: Row = {"implementation": side, "load_average": load_average()}
        if option.int8 and importlib.util.find_spec("torchao") is None:
            return row | {"not_run": "torchao is not installed", "because": "torchao"}
        if option.dtype == "bfloat16" and torch.backends.cpu.get_cpu_capability() == "AVX2":
            return row | {"not_run": "without AVX512 bfloat16 is emulated, many times slower", "because": "bfloat16"}
        try:
            if side not in plain:
                plain[side] = self.drawn(Option(), side, folder)
            drawn = plain[side] if option == Option() else self.drawn(option, side, folder)
        except RuntimeError as error:  # a process that needs too much memory is ended: the others can still run
            return row | failure(error)
        row |= {"peak_bytes": drawn.peak, "peak_bytes_by": PEAK_BY[self.config.torch_device.type]}
        row |= {"imported_bytes": drawn.imported, "loaded_bytes": drawn.loaded} | times(drawn, STEPS)
        if option != Option():
            latents, expected = (torch.tensor(x.latents) for x in (drawn, plain[side]))
            row |= {"error": significant(relative_rms(latents, expected))}
            row |= {"error_at": f"latents after {self.steps} steps; the pipeline as loaded"}
        return row

    def drawn(self, option: Option, side: str, folder: Path) -> Drawn:
        source = folder / side
        if option.int8:
            source = folder / f"{side}-int8"
            if not source.exists():
                save_int8(folder / side, source)
        order = Order(
            folder=str(source),
            prompt=text_of_length(self.length),
            has_states=side == STATE,
            text_first=option.text_first,
            size=self.size,
            steps=self.steps,
            device=self.config.device,
            dtype=option.dtype or str(self.config.torch_dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
        )
        return in_fresh_process(order)


def times(drawn: Drawn, steps: int) -> Row:
    """Milliseconds: of one step, and of an image of so many, those that were not run added."""
    image = drawn.whole + (steps - len(drawn.until_step)) * drawn.step
    return {"step_ms": significant(1e3 * drawn.step), "image_ms": significant(1e3 * image)}
