"""Keys that stay channels until they are scanned: `state_writes`, `final_state` and the features made between."""

import pytest
import torch
from crosswkv_kernels import ChannelWrite, Write, chunked_state, final_state, state_writes, wkv7_reference
from generators import seeded
from scans import relative_rms

HEADS = 3
NAMES = ("w", "k", "v", "kappa", "a", "initial_state")


def channel_write(batch_size=2, length=70, n=8, V=4, dtype=torch.float64, size=1.0):
    """Some tokens write nothing, as under a mask; leaves of a graph, and a state to start from."""
    generator = seeded(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shape = (batch_size, length, HEADS)
    w, a = -0.6 * normal(*shape, 1).sigmoid(), normal(*shape, 1).sigmoid()
    tensors = [w, 1 + normal(*shape, 1) / 4, normal(*shape, V), size * normal(*shape, n), a]
    for x in tensors:
        x[:, 3:6] = 0
    tensors.append(normal(batch_size, HEADS, V, 4 * n))
    return [x.to(dtype).requires_grad_() for x in tensors]


def run(tensors):
    *write, start = tensors
    return final_state(ChannelWrite(*write), start)


def run_reference(tensors):
    *write, start = tensors
    return wkv7_reference(None, *ChannelWrite(*write).mapped(), initial_state=start)[1]


def gradients(state, tensors):
    return torch.autograd.grad(state, tensors, torch.linspace(-1, 1, state.numel(), dtype=state.dtype).view_as(state))


@pytest.mark.parametrize("length", [1, 15, 32, 33, 77, 97])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16], ids="{} channels".format)
def test_state_and_gradients(n, length):
    tensors = channel_write(length=length, n=n)
    state, expected = run(tensors), run_reference(tensors)
    torch.testing.assert_close(state, expected)
    for name, got, exact in zip(NAMES, gradients(state, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(got, exact, msg=lambda message, name=name: f"{name}: {message}")


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3, 1e6])
def test_float32(size):
    exact = channel_write(length=77, size=size)
    single = [x.detach().float().requires_grad_() for x in exact]
    exact = [x.detach().double().requires_grad_() for x in single]  # the same numbers
    state, expected = run(single), run_reference(exact)
    assert relative_rms(state, expected, 1) < 1e-5
    for name, got, wanted in zip(NAMES, gradients(state, single), gradients(expected, exact), strict=True):
        assert relative_rms(got, wanted, 1 if name == "initial_state" else 2) < 1e-5, name


@pytest.mark.parametrize("size", [1e-7, 1e-9, 1e-12])
def test_channels_too_small_to_have_a_direction(size):
    tensors = channel_write(size=size, dtype=torch.float32)
    state, expected = run(tensors), run_reference(tensors)
    torch.testing.assert_close(state, expected)
    for name, got, wanted in zip(NAMES, gradients(state, tensors), gradients(expected, tensors), strict=True):
        assert got.isfinite().all(), name
        if size > 1e-10:
            assert relative_rms(got.double(), wanted.double(), 2 if got.ndim == 4 else 1) < 1e-4, name


def test_tokens_and_heads_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(chunked_state, "TILE_SIZE", 24)
    monkeypatch.setattr(chunked_state, "TOKENS_AT_ONCE", 2 * 24)
    tensors = channel_write()
    state, expected = run(tensors), run_reference(tensors)
    torch.testing.assert_close(state, expected)
    torch.testing.assert_close(gradients(state, tensors), gradients(expected, tensors))


def test_gradients_have_gradients(monkeypatch):
    monkeypatch.setattr(chunked_state, "TILE_SIZE", 12)
    tensors = [x[:, :, :1].detach() for x in channel_write(1, 20, 2, 1)[:-1]]
    tensors[3][:, 3:6] = 0.5  # a norm has no second derivative at zero
    tensors = [x.requires_grad_() for x in tensors]
    assert torch.autograd.gradgradcheck(lambda *write: final_state(ChannelWrite(*write)), tensors)


def test_gradients_of_inputs_that_one_another_is_made_of():
    """`state_writes` makes what keys are multiplied by from the rate: both have their own gradients."""
    tensors = [x.detach().requires_grad_() for x in channel_write()]
    tensors[1] = 1 + (tensors[4] - 1) * 0.9
    leaves = [tensors[i] for i in (0, 2, 3, 4, 5)]
    exact = torch.autograd.grad(run(tensors).square().sum(), leaves, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(run(tensors).square().sum(), leaves, create_graph=True), exact)


def test_neither_features_nor_their_gradients_are_kept():
    tensors = channel_write(length=600, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        run(tensors)
    starts = [x for x in kept if x.data_ptr() not in {y.data_ptr() for y in tensors}]
    assert [x.shape for x in starts] == [(3, *tensors[-1].shape)]


@pytest.mark.parametrize("residual", [False, True])
def test_state_writes_leaves_channels_where_it_may(residual):
    generator = seeded(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    B, L, n, V = 2, 40, 4, 5
    decay, rate, k_a = normal(B, L, HEADS), normal(B, L, HEADS), normal(HEADS)
    key, value = normal(B, L, HEADS * n), normal(B, L, HEADS * V)
    extra = {name: normal(B, L, HEADS * V) for name in ("first_value", "value_share")} if residual else {}
    options = {"num_heads": HEADS, "mask": torch.rand(B, L, generator=generator) > 0.3} | extra
    inputs = (decay, rate, key, value, None, k_a)
    whole = state_writes(*inputs, **options, feature_map="quadratic")
    left = state_writes(*inputs, **options, feature_map="quadratic", channels_may_stay=True)
    assert type(whole) is Write and type(left) is ChannelWrite
    assert left.kappa.shape == (B, L, HEADS, n) and left.head_dim == whole.head_dim == 4 * n
    for got, expected in zip((*left.mapped(), left.keys), (*whole, whole.keys), strict=True):
        torch.testing.assert_close(got, expected)
    leaves = (decay, rate, key, value, k_a, *extra.values())
    states = final_state(left), final_state(whole)
    torch.testing.assert_close(*states)
    torch.testing.assert_close(*(gradients(state, leaves) for state in states))


@pytest.mark.parametrize("change", [{"feature_map": "silu"}, {"k_k": 0.1 * torch.ones(HEADS * 16)}], ids=str)
def test_state_writes_leaves_no_other_channels(change):
    rates = torch.randn(1, 4, HEADS), torch.randn(1, 4, HEADS)
    inputs = {"k_k": None, "feature_map": "quadratic"} | change
    n = 16 if inputs["feature_map"] == "silu" else 4
    key, value = torch.randn(1, 4, HEADS * n), torch.randn(1, 4, HEADS * 4)
    options = {"k_a": torch.ones(HEADS), "num_heads": HEADS, "channels_may_stay": True} | inputs
    assert type(state_writes(*rates, key, value, **options)) is Write


def test_compiled_programs_take_features():
    torch.compiler.reset()
    inputs = [torch.randn(1, 40, width) for width in (HEADS, HEADS, HEADS * 4, HEADS * 4)]

    def state(*tensors):
        write = state_writes(*tensors, None, torch.ones(HEADS), HEADS, feature_map="quadratic", channels_may_stay=True)
        return final_state(write)

    compiled = torch.compile(state, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs), state(*inputs))
    write = ChannelWrite(*(x.detach() for x in channel_write()[:-1]))
    torch.testing.assert_close(torch.compile(final_state, fullgraph=True, backend="eager")(write), final_state(write))


def test_backward_under_autocast():
    tensors = channel_write(dtype=torch.float32)
    expected = gradients(run(tensors), tensors)
    with torch.autocast("cpu", torch.bfloat16):
        got = gradients(run(tensors), tensors)
    for x, y in zip(got, expected, strict=True):
        assert torch.equal(x, y)


def test_a_text_of_no_tokens():
    tensors = [x.detach() for x in channel_write()]
    *write, start = (x[:, :0] if x is not tensors[-1] else x for x in tensors)
    assert torch.equal(final_state(ChannelWrite(*write), start), start)
    assert not final_state(ChannelWrite(*write)).any()


@pytest.mark.parametrize(
    ("place", "width", "message"),
    [
        (0, 2, r"`w` must be \[B, T, H, 1\] with the sizes of `kappa`, got \[2, 70, 3, 2\] and \[2, 70, 3, 8\]"),
        (2, None, r"`v` must be \[B, T, H, V\], got \[2, 70, 3\]"),
        (5, 8, r"`initial_state` must be \[B, H, V, K\] = \[2, 3, 4, 32\], got \[2, 3, 4, 8\]"),
    ],
)
def test_shapes_that_do_not_fit(place, width, message):
    tensors = [x.detach() for x in channel_write()]
    x = tensors[place]
    tensors[place] = x[..., 0] if width is None else x[..., :1].expand(*x.shape[:-1], width)
    with pytest.raises(ValueError, match=message):
        run(tensors)
