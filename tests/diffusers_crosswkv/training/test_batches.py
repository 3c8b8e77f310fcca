import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusers_crosswkv.data.digits import load_digits
from diffusers_crosswkv.training.batches import draw_batch, epoch_indices

DIGITS = load_digits()


@given(st.integers(1, 20), st.integers(0, 60), st.integers(1, 45), st.integers(0, 3))
def test_every_epoch_holds_every_image_once(size, start, count, seed):
    endless = epoch_indices(size, 0, 120, seed)
    assert epoch_indices(size, start, count, seed) == endless[start : start + count]
    assert all(sorted(endless[i : i + size]) == list(range(size)) for i in range(0, 120 - size, size))


def test_epochs_differ():
    order = epoch_indices(50, 0, 100, seed=0)
    assert order[:50] != order[50:]


def same(a, b):
    return a.captions == b.captions and all(
        torch.equal(x, y) for x, y in ((a.images, b.images), (a.noise, b.noise), (a.timesteps, b.timesteps))
    )


def test_a_batch_depends_on_seed_and_step_alone():
    def batch(step, seed):
        return draw_batch(DIGITS, step, 16, 0.1, 1000, seed)

    assert same(batch(3, 0), batch(3, 0))
    assert not same(batch(3, 0), batch(4, 0))
    assert not same(batch(3, 0), batch(3, 1))
    torch.rand(5)
    assert same(batch(3, 0), batch(3, 0))


def test_parts_of_processes_make_up_the_batch():
    batch = draw_batch(DIGITS, 0, 8, 0.1, 1000, 0)
    parts = [batch.part(i, 2) for i in range(2)]
    assert sorted(parts[0].captions + parts[1].captions) == sorted(batch.captions)
    assert torch.equal(torch.stack([part.noise for part in parts], dim=1).flatten(0, 1), batch.noise)


def test_share_of_dropped_captions_and_timesteps():
    batch = draw_batch(DIGITS, 0, 1500, 0.1, 1000, 0)
    assert 0.07 < batch.captions.count("") / 1500 < 0.13
    assert (batch.timesteps.min() < 20) & (batch.timesteps.max() > 980)
    assert draw_batch(DIGITS, 0, 30, 1.0, 1000, 0).captions == [""] * 30
    assert "" not in draw_batch(DIGITS, 0, 30, 0.0, 1000, 0).captions
