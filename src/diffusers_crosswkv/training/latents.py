"""Images as what the U-Net is trained on: latents of a VAE, cached on disk as mean and deviation, or the pixels."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..data.examples import Example
from .tensor_cache import TensorCache, cache_key, digest_of

VERSION = 1  # of what is cached; to be raised when it changes
WAYS_OF_ENCODING = ("use_tiling", "tile_sample_min_size", "tile_overlap_factor", "use_slicing")


class Posterior(NamedTuple):
    """What a VAE makes of an image, before its scale and shift; `std` is zero where it does not draw."""

    mean: torch.Tensor  # [C, h, w]
    std: torch.Tensor  # [C, h, w]


class Loaded(NamedTuple):
    """An example's pixels, or in their place what the cache had of it."""

    example: Example
    pixels: torch.Tensor | None  # [C, height, width] in [-1, 1]
    posterior: Posterior | None = None


class Latents:
    """Examples to latents.

    With a cache each image is encoded alone, so that its latents do not depend on what else was in a batch, and once:
    the mean and the deviation are kept, in the dtype that the VAE computes in. What is cached depends on the example's
    identity and size, and on the VAE's weights, dtype and settings.

    Args:
        vae: `AutoencoderKL`, `AutoencoderTiny` or another of Diffusers with their `encode`; None trains on pixels.
        caches: a folder that holds caches, or None.
    """

    def __init__(self, vae: Any = None, caches: str | os.PathLike | None = None):
        self.vae: Any = None if vae is None else vae.eval().requires_grad_(False)
        self.cache = None if caches is None or vae is None else TensorCache(Path(caches, "latents"))
        if self.cache is not None:
            ways = {name: getattr(vae, name, None) for name in WAYS_OF_ENCODING}
            self.digest = digest_of(vae, {**vae.config, **ways})

    def load(self, example: Example) -> Loaded:
        """What can be done ahead, in any thread: decode the image, or find that it need not be.

        Raises:
            BrokenImage: it cannot be decoded.
        """
        found = None if self.cache is None else self.cache.get(self.key(example))
        if found is not None and found.keys() == {"mean", "std"}:
            return Loaded(example, None, Posterior(**found))
        return Loaded(example, example.pixels())

    def draw(self, loaded: Sequence[Loaded], generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Latents `[B, C, h, w]`, float32, one draw of each image's own posterior, scaled and shifted for the U-Net.

        They lie where the VAE is; pixels, `[B, C, height, width]`, on the CPU.

        Raises:
            ValueError: the VAE gives numbers that are not finite.
            OSError: the cache cannot be written.
        """
        if self.vae is None:
            return torch.stack([item.pixels for item in loaded]).float()  # type: ignore[misc]
        means, stds = (torch.stack(parts).float() for parts in zip(*self.posteriors(loaded), strict=True))
        noise = torch.stack([torch.randn(means.shape[1:], generator=generator) for generator in generators])
        config = self.vae.config
        z = means + stds * noise.to(means.device)
        return (z - (config.get("shift_factor") or 0)) * config.scaling_factor

    def posteriors(self, loaded: Sequence[Loaded]) -> list[Posterior]:
        """One per image, where the VAE is."""
        if self.cache is None:
            return self.encode(loaded)
        found = []
        for item in loaded:
            posterior = item.posterior
            if posterior is None:
                (posterior,) = self.encode([item])
                self.cache.put(self.key(item.example), posterior._asdict())
            found.append(Posterior(*(x.to(self.vae.device) for x in posterior)))
        return found

    @torch.no_grad()
    def encode(self, loaded: Sequence[Loaded]) -> list[Posterior]:
        """In one batch, in the VAE's dtype, whatever autocast says."""
        device, dtype = self.vae.device, self.vae.dtype
        pixels = torch.stack([item.pixels for item in loaded])  # type: ignore[misc]
        with torch.autocast(device.type, enabled=False):
            encoded = self.vae.encode(pixels.to(device, dtype))
        if hasattr(encoded, "latent_dist"):
            mean, std = encoded.latent_dist.mean, encoded.latent_dist.std
        else:
            mean, std = encoded.latents, torch.zeros_like(encoded.latents)
        if not (mean.isfinite().all() and std.isfinite().all()):
            raise ValueError(
                f"The VAE must give finite latents, but does not in {dtype} for one of "
                f"{', '.join(item.example.name for item in loaded)}; load the VAE in float32."
            )
        return [Posterior(*parts) for parts in zip(mean, std, strict=True)]

    def key(self, example: Example) -> str:
        return cache_key(
            kind="latents", version=VERSION, image=example.identity, size=list(example.size), vae=self.digest
        )
