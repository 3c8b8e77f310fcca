"""The CLIP score (Hessel et al., 2021, arXiv:2104.08718) as torchmetrics has it: without its factor 2.5."""

import torch

CLIP_SCALE = 100.0


def clip_score(cosines: torch.Tensor) -> float:
    """100 times the mean cosine, or 0 if that is negative.

    Hessel et al. set the negative cosine of a pair to 0, torchmetrics the mean: a pair below 0 lowers it.

    Args:
        cosines: `[N]`, of images with their prompts.
    """
    return max(CLIP_SCALE * float(cosines.double().mean()), 0.0)
