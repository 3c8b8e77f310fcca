"""The state alone has a backward by hand; here is what the grid of `test_wkv7.py` does not reach."""

from functools import partial

import pytest
import torch
from crosswkv_kernels import chunked_state, wkv7, wkv7_reference
from generators import seeded
from scans import relative_rms

NAMES = ("w", "k", "v", "kappa", "a", "initial_state")
chunked = partial(wkv7, backend="chunked")


def arguments(batch_size=2, length=40, heads=3, K=8, V=4, dtype=torch.float64):
    generator = seeded(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    shape = (batch_size, length, heads, K)
    kappa = torch.nn.functional.normalize(normal(*shape), dim=-1)
    w, a = -0.6 * normal(*shape).sigmoid(), normal(*shape).sigmoid()
    tensors = (w, normal(*shape), normal(*shape[:3], V), kappa, a, normal(batch_size, heads, V, K))
    return [x.requires_grad_() for x in tensors]


def with_one_per_head(tensors, names):
    return [
        x[..., :1].detach().requires_grad_() if name in names else x for name, x in zip(NAMES, tensors, strict=True)
    ]


def final_state(*tensors, scan=chunked):
    *write, start = tensors
    return scan(None, *write, initial_state=start)[1]


def gradients(tensors, scan, wanted=NAMES):
    state = final_state(*tensors, scan=scan)
    d_state = torch.linspace(-1, 1, state.numel(), dtype=state.dtype).view_as(state)
    return torch.autograd.grad(state, [tensors[NAMES.index(name)] for name in wanted], d_state)


@pytest.mark.parametrize("tiles", [[40], [20, 20], [14, 14, 12], [6] * 6 + [4]], ids=str)
@pytest.mark.parametrize("heads", [[1, 1, 1], [2, 1], [3]], ids=str)
@pytest.mark.parametrize("of_heads", [(), ("w", "k", "a")], ids=str)
def test_tokens_and_heads_a_few_at_a_time(monkeypatch, of_heads, heads, tiles):
    monkeypatch.setattr(chunked_state, "TILE_SIZE", tiles[0])
    monkeypatch.setattr(chunked_state, "TOKENS_AT_ONCE", 2 * tiles[0] * heads[0])
    found = chunked_state.tiles_and_blocks(torch.empty(2, 40, 3, 8))
    assert [[len(range(n)[part]) for part in parts] for n, parts in zip((40, 3), found, strict=True)] == [tiles, heads]
    tensors = with_one_per_head(arguments(), of_heads)
    torch.testing.assert_close(final_state(*tensors), final_state(*tensors, scan=wkv7_reference))
    torch.testing.assert_close(gradients(tensors, chunked), gradients(tensors, wkv7_reference))


def test_some_gradients_and_strided_arguments():
    tensors = arguments()
    tensors[0] = tensors[0].detach()
    wide = torch.cat([tensors[1].detach()] * 2, dim=-1)
    tensors[1] = wide[..., ::2].requires_grad_()
    wanted = ("k", "initial_state")
    for got, expected in zip(
        gradients(tensors, chunked, wanted), gradients(tensors, wkv7_reference, wanted), strict=True
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("of_heads", [(), ("w", "a"), ("w", "k", "a")], ids=str)
def test_gradients_have_gradients(of_heads, monkeypatch):
    monkeypatch.setattr(chunked_state, "TILE_SIZE", 12)
    tensors = with_one_per_head(arguments(batch_size=1, length=33, heads=1, K=2, V=1), of_heads)
    assert torch.autograd.gradgradcheck(final_state, tensors)


def test_arguments_and_a_state_per_tile_are_kept():
    tensors = arguments(length=600, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        final_state(*tensors)
    of_arguments = {x.data_ptr() for x in tensors}
    assert of_arguments == {x.data_ptr() for x in kept} & of_arguments
    (starts,) = (x for x in kept if x.data_ptr() not in of_arguments)
    assert starts.shape == (3, *tensors[-1].shape)
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        final_state(*(x.detach() for x in tensors))
    assert not kept


@pytest.mark.parametrize("of_heads", [(), ("w", "k", "a")], ids=str)
def test_backward_under_autocast(of_heads):
    tensors = with_one_per_head(arguments(dtype=torch.float32), of_heads)
    expected = gradients(tensors, chunked)
    with torch.autocast("cpu", torch.bfloat16):
        got = gradients(tensors, chunked)
    for x, y in zip(got, expected, strict=True):
        assert torch.equal(x, y)


def test_gradients_have_the_dtypes_of_their_arguments():
    tensors = [x.detach().to(torch.bfloat16).requires_grad_() for x in arguments(dtype=torch.float32)]
    final_state(*tensors).sum().backward()
    assert {x.grad.dtype for x in tensors} == {torch.bfloat16}


@pytest.mark.parametrize("of_heads", [(), ("w", "k", "a")], ids=str)
def test_gradients_that_have_decayed_are_zero(of_heads):
    """Not subnormal, for CPUs are slow with those; behind them they are right."""
    tensors = with_one_per_head(arguments(length=400), of_heads)
    single = [x.detach().float().requires_grad_() for x in tensors]
    tiny = torch.finfo(torch.float32).tiny
    exact_ones = gradients(tensors, wkv7_reference)
    for name, exact, gradient in zip(NAMES, exact_ones, gradients(single, chunked), strict=True):
        subnormal = (gradient != 0) & (gradient.abs() < tiny)
        assert subnormal.float().mean() < 1e-3, name
        if name == "initial_state":
            assert (gradient == 0).all()
            continue
        assert (gradient[:, :100] == 0).all(), name
        assert relative_rms(gradient, exact, 2) < 1e-5, name
        if name != "w":  # the difference of running sums, which are rounded where they are large
            for tokens in (slice(-80, -40), slice(-120, -80)):  # smaller by orders
                assert relative_rms(gradient[:, tokens], exact[:, tokens], 2) < 1e-5, name
