import copy

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from vaes import tiny_vae

from diffusers_crosswkv.data.examples import BrokenImage, Example
from diffusers_crosswkv.training.latents import Latents


def example(number=0, identity=None, size=(8, 8), opened=None):
    def pixels():
        if opened is not None:
            opened.append(number)
        return torch.randn(3, *size, generator=torch.Generator().manual_seed(number)).clamp(-1, 1)

    return Example(f"{number}.png", "a caption", identity or f"digest {number}", size, pixels)


def generators(count=2):
    return [torch.Generator().manual_seed(i) for i in range(count)]


def drawn(latents, *examples):
    return latents.draw([latents.load(x) for x in examples], generators(len(examples)))


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return tiny_vae()


def test_latents_are_draws_of_the_posterior_at_the_scale_of_the_pipeline(vae):
    """z = (mean + std * eps - shift) * scale, and decoding as the pipeline does gives the same as from the draw."""
    vae = copy.deepcopy(vae)
    vae.register_to_config(shift_factor=0.3, scaling_factor=1.7)
    pixels = torch.stack([example(i).pixels() for i in range(2)])
    eps = torch.stack([torch.randn(4, 4, 4, generator=g) for g in generators()])
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    z = posterior.mean + posterior.std * eps
    latents = Latents(vae)
    found = drawn(latents, example(0), example(1))
    torch.testing.assert_close(found, (z - 0.3) * 1.7)
    torch.testing.assert_close(found / 1.7 + 0.3, z)
    again = latents.draw([latents.load(example(i)) for i in range(2)], generators())
    assert torch.equal(again, found)
    assert not torch.equal(drawn(latents, example(0)), latents.draw([latents.load(example(0))], generators(2)[1:]))


def test_pixels_without_a_vae():
    latents, generator = Latents(), torch.Generator().manual_seed(3)
    before = generator.get_state()
    found = latents.draw([latents.load(example(0)), latents.load(example(1))], [generator, generator])
    assert torch.equal(found, torch.stack([example(i).pixels() for i in range(2)]))
    assert torch.equal(generator.get_state(), before)


def test_a_vae_that_does_not_draw():
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        upsampling_scaling_factor=2,
        scaling_factor=0.5,
    )
    with torch.no_grad():
        expected = vae.eval().encode(torch.stack([example(i).pixels() for i in range(2)])).latents * 0.5
    torch.testing.assert_close(drawn(Latents(vae), example(0), example(1)), expected)


def test_a_cache_opens_each_image_once_and_gives_the_same(vae, tmp_path):
    """Bit for bit, also in another run, in other company, and in the first pass itself."""
    opened = []
    first = drawn(Latents(vae, tmp_path), example(0, opened=opened), example(1, opened=opened))
    assert opened == [0, 1]
    again = Latents(vae, tmp_path)
    assert torch.equal(drawn(again, example(0, opened=opened), example(1, opened=opened)), first)
    assert torch.equal(drawn(again, example(0, opened=opened), example(2)), drawn(again, example(0), example(2)))
    assert torch.equal(drawn(again, example(0), example(2))[0], first[0])
    assert opened == [0, 1]
    torch.testing.assert_close(first, drawn(Latents(vae), example(0), example(1)))
    kept = again.cache.get(again.key(example(0)))
    assert kept.keys() == {"mean", "std"} and kept["std"].min() > 0


def test_what_changes_latents_changes_the_key(vae, tmp_path):
    """Weights, dtype, settings and tiling of the VAE, crop, resolution: none may find what another has left."""
    moved, half, other, tiled = (copy.deepcopy(vae) for _ in range(4))
    next(moved.parameters()).data[0] += 1e-3
    half.to(torch.bfloat16)
    other.register_to_config(scaling_factor=0.5)
    tiled.enable_tiling()
    bigger = AutoencoderKL(**{**vae.config, "norm_num_groups": 2})
    keys = {Latents(x, tmp_path).key(example()) for x in (vae, moved, half, other, tiled, bigger)}
    latents = Latents(vae, tmp_path)
    keys |= {latents.key(example(identity="cropped")), latents.key(example(size=(16, 16)))}
    assert len(keys) == 8
    assert Latents(copy.deepcopy(vae), tmp_path).key(example()) in keys

    drawn(latents, example())
    opened = []
    drawn(Latents(moved, tmp_path), example(opened=opened))
    assert opened == [0]


def test_a_damaged_entry_is_computed_again(vae, tmp_path):
    latents = Latents(vae, tmp_path)
    first = drawn(latents, example())
    latents.cache.path(latents.key(example())).write_bytes(b"damaged")
    opened = []
    assert torch.equal(drawn(latents, example(opened=opened)), first) and opened == [0]
    assert torch.equal(drawn(latents, example(opened=opened)), first) and opened == [0]


def test_broken_images_are_the_loops_matter(vae, tmp_path):
    def pixels():
        raise BrokenImage("truncated")

    broken = Example("bad.png", "", "bad", (8, 8), pixels)
    with pytest.raises(BrokenImage, match="truncated"):
        Latents(vae, tmp_path).load(broken)


def test_autocast_and_gradients_stay_outside(vae):
    latents = Latents(vae)
    plain = drawn(latents, example())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(drawn(latents, example()), plain)
    assert not plain.requires_grad and not any(p.requires_grad for p in vae.parameters())


def test_a_vae_that_overflows_is_named_and_nothing_is_kept(vae, tmp_path):
    vae = copy.deepcopy(vae)
    vae.quant_conv.bias.data[0] = float("inf")
    latents = Latents(vae, tmp_path)
    with pytest.raises(ValueError, match=r"finite latents, but does not in torch\.float32 for one of 0\.png"):
        drawn(latents, example())
    assert latents.cache.size().entries == 0
