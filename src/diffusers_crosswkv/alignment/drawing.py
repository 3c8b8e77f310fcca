"""Pictures from captions, with a U-Net of either kind; what a pipeline does, for patched pixels."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from diffusers import DPMSolverMultistepScheduler

from ..data.scene_splits import Scenes
from ..models import DIR7UNet2DConditionModel
from ..models.text_windows import encode_texts
from ..training import Models
from .arms import NOISE_SCHEDULE, Preset


class Patched:
    """Scenes whose pictures are cut in patches, `[3 * patch**2, resolution / patch, resolution / patch]`."""

    def __init__(self, scenes: Scenes, patch: int):
        self.scenes, self.patch = scenes, patch
        self.caption = scenes.caption

    def __len__(self) -> int:
        return len(self.scenes)

    def image(self, index: int) -> torch.Tensor:
        return F.pixel_unshuffle(self.scenes.image(index), self.patch)


@torch.no_grad()
def draw(models: Models, captions: Sequence[str], preset: Preset, seed: int, reads_text: bool = True) -> torch.Tensor:
    """One picture `[3, resolution, resolution]` in [-1, 1] per caption; noise from the seed.

    A model that has never seen a caption (`reads_text=False`) gets none, and no guidance.
    """
    guidance_scale = preset.guidance_scale if reads_text else None
    x = denoise(models, captions, NOISE_SCHEDULE, preset.sampling_steps, guidance_scale, seed)
    return F.pixel_shuffle(x, preset.patch)


@torch.no_grad()
def denoise(
    models: Models,
    captions: Sequence[str],
    noise_schedule: Mapping[str, str],
    sampling_steps: int,
    guidance_scale: float | None,
    seed: int,
    after_step: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """One sample `[C, height, width]` in [-1, 1] per caption by DPM-Solver++, on the CPU; noise from the seed.

    Without a guidance scale no caption is read.
    """
    scheduler = DPMSolverMultistepScheduler(**noise_schedule, thresholding=True, sample_max_value=1.0)
    scheduler.set_timesteps(sampling_steps)
    config, generator = models.unet.config, torch.Generator().manual_seed(seed)
    shape = (len(captions), config.in_channels, config.sample_size, config.sample_size)
    x = torch.randn(shape, generator=generator).to(models.unet.device)
    text = read_texts(models, [*(captions if guidance_scale is not None else ()), *[""] * len(captions)])
    for t in scheduler.timesteps:
        prediction = models.unet(x if guidance_scale is None else torch.cat([x, x]), t, **text).sample
        if guidance_scale is not None:
            prompted, unprompted = prediction.chunk(2)
            prediction = unprompted + guidance_scale * (prompted - unprompted)
        x = scheduler.step(prediction, t, x).prev_sample
        after_step()
    return x.clamp(-1, 1).cpu()


def read_texts(models: Models, captions: Sequence[str]) -> dict[str, object]:
    """The U-Net's text arguments; a prompt state where there is one, so that the text is scanned once."""
    hidden, mask = encode_texts(models.text_encoder, models.tokenizer, [models.text_prefix + x for x in captions])
    unet = models.unet
    if isinstance(unet, DIR7UNet2DConditionModel) and unet.config.crosswkv_fusion != "paper":
        state = unet.encode_prompt(hidden, mask)
        return {"encoder_hidden_states": None, "cross_attention_kwargs": {"prompt_state": state}}
    return {"encoder_hidden_states": hidden, "encoder_attention_mask": mask}
