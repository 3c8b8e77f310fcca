"""`state_readout` against an explicit read and `torch.nn.GroupNorm`, in float64."""

import random
from functools import partial

import pytest
import torch
from crosswkv_kernels import cpu_read, cpu_read_gradients, state_readout, triton_readout
from generators import HERE, seeded
from interpreter import use_tensor_cores

pytestmark = pytest.mark.usefixtures("poisoned_memory")
BOTH = pytest.mark.parametrize("backend", ["triton", "chunked"])
ERROR_BARS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 5e-3}
DTYPES = pytest.mark.parametrize("dtype", ERROR_BARS, ids=str)
EPS, HEADS = 64e-5, 3


def make_inputs(length=9, K=16, V=16, *, batch=2, gated=True, products=False, dtype=torch.float64, seed=0):
    """Random arguments; the heads' states differ in size, so that `eps` counts for one and not for another.

    With `products` the receptance has a quarter of K channels.
    """
    generator = seeded(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    size = torch.logspace(-2, 1, HEADS, dtype=torch.float64)[:, None, None]
    inputs = {
        "r": randn(batch, length, HEADS, K // 4 if products else K),
        "state": randn(batch, HEADS, V, K) * size,
        "norm_weight": 1 + randn(HEADS * V) / 4,
        "norm_bias": randn(HEADS * V) / 4,
        "gate": randn(batch, length, HEADS * V) if gated else None,
    }
    return {name: x if x is None else x.to(dtype) for name, x in inputs.items()}


def oracle(r, state, norm_weight=None, norm_bias=None, gate=None, eps=EPS, feature_map="identity"):
    n = r.shape[-1]
    if feature_map == "silu":
        r = r / (1 + (-r).exp())
    if feature_map == "quadratic":
        pairs = [(i, (i + j) % n, 2**0.5 if j else 1) for j in range(4) for i in range(n)]
        products = torch.stack([r[..., i] * r[..., j] * factor for i, j, factor in pairs], -1)
        r = products / n**0.5 / (r.square().sum(-1, keepdim=True) / n + 1e-4)
    o = torch.einsum("bhvk,bthk->bthv", state, r).flatten(2)  # [B, T, H * V]
    norm = torch.nn.GroupNorm(state.shape[1], o.shape[-1], eps=eps, affine=False, dtype=o.dtype)
    if norm_weight is not None:
        o = norm(o.flatten(0, 1)).view_as(o) * norm_weight + norm_bias
    return o if gate is None else o * gate


def run(function, inputs):
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items() if x is not None}
    o = function(**leaves)
    cotangent = torch.randn(o.shape, generator=seeded(1)).bfloat16().to(o.dtype)
    gradients = torch.autograd.grad(o, list(leaves.values()), cotangent)
    return {"o": o} | {f"d_{name}": x for name, x in zip(leaves, gradients, strict=True)}


def heads_first(name, x):
    """`[H, ...]`; all but receptance and state have `H * V` numbers at their end."""
    axes = {"d_r": 2, "d_state": 1}
    return x.movedim(axes[name], 0) if name in axes else x.unflatten(-1, (HEADS, -1)).movedim(-2, 0)


def relative_rms(actual, expected, name="o"):
    """RMS of the error over RMS of the expected, of the worst head."""
    assert actual.shape == expected.shape
    actual, expected = (heads_first(name, x.double()).flatten(1) for x in (actual, expected))
    return ((actual - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


def assert_accurate(inputs, bar, backend="chunked", **options):
    doubles = {name: x if x is None else x.double() for name, x in inputs.items()}
    expected = run(partial(oracle, **options), doubles)
    without = {name: None for name, x in inputs.items() if x is None}
    actual = run(partial(state_readout, **without, **options, backend=backend), inputs)
    errors = {name: relative_rms(actual[name], x, name) for name, x in expected.items()}
    wrong = {name: error for name, error in errors.items() if not error <= bar}
    assert not wrong, f"{wrong} above {bar}"


@pytest.mark.parametrize("seed", range(25))
def test_formula(seed):
    draw = random.Random(seed).randint
    K, V = draw(2, 9), draw(3, 9)  # the norm takes the size away: of one number, and of two values, little is left
    inputs = make_inputs(draw(1, 9), K, V, batch=draw(1, 3), gated=draw(0, 1) == 1, seed=seed)
    assert_accurate(inputs, 1e-11)


@DTYPES
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (32, 128), (128, 16), (16, 48)], ids=str)
def test_dtypes(size, gated, dtype):
    inputs = make_inputs(77, *size, gated=gated, dtype=dtype)
    assert state_readout(**inputs).dtype == dtype
    assert_accurate(inputs, ERROR_BARS[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_products_of_tensor_cores(dtype, monkeypatch):
    use_tensor_cores(monkeypatch)
    assert_accurate(make_inputs(20, 32, 16, dtype=dtype), ERROR_BARS[dtype], "triton")


def without_norm(inputs):
    return inputs | {"norm_weight": None, "norm_bias": None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("normed", [False, True])
def test_triton(normed, gated, dtype):
    inputs = make_inputs(37, 24, 40, gated=gated, dtype=torch.float32)
    inputs |= {name: inputs[name].to(dtype) for name in ("r", "gate") if inputs[name] is not None}
    assert_accurate(inputs if normed else without_norm(inputs), ERROR_BARS[dtype], "triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", ["triton", "chunked"])
@pytest.mark.parametrize("feature_map", ["silu", "quadratic"])
def test_feature_maps(feature_map, backend, dtype):
    for gated, normed in ((True, True), (False, True), (True, False)):
        inputs = make_inputs(37, 24, 40, gated=gated, products=feature_map == "quadratic", dtype=torch.float32)
        inputs |= {name: x.to(dtype) for name, x in inputs.items() if name in ("r", "gate") and x is not None}
        inputs = inputs if normed else without_norm(inputs)
        assert_accurate(inputs, ERROR_BARS[dtype], backend, feature_map=feature_map)


@pytest.mark.parametrize("size", [(8, 5), (12, 16), (64, 16), (128, 48)], ids=str)
def test_triton_sizes_of_products(size):
    inputs = make_inputs(9, *size, batch=1, products=True, dtype=torch.float32)
    assert_accurate(inputs, 1e-5, "triton", feature_map="quadratic")


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("at_once", [4, 18])  # tokens of one sequence, or two of three sequences
@pytest.mark.parametrize(
    ("feature_map", "channels"),
    [("quadratic", 2), ("quadratic", 3), ("quadratic", 6), ("quadratic", 16), ("identity", 8), ("silu", 5)],
)
def test_reading_without_gradients_is_reading(feature_map, channels, at_once, normed, gated, monkeypatch):
    """A CPU reads block by block then; here blocks of a few tokens."""
    products = feature_map == "quadratic"
    inputs = make_inputs(9, 4 * channels if products else channels, 8, batch=3, gated=gated, products=products)
    inputs = inputs if normed else without_norm(inputs)
    expected = oracle(**inputs, feature_map=feature_map)
    monkeypatch.setattr(cpu_read, "CHANNELS_AT_ONCE", at_once * HEADS * channels)
    monkeypatch.setattr(cpu_read, "ALIGNMENT", 1)
    o = state_readout(**inputs, eps=EPS, feature_map=feature_map)
    assert relative_rms(o, expected) <= 1e-12
    weights = {name: x.requires_grad_() for name, x in inputs.items() if x is not None and "norm" in name}
    assert state_readout(**inputs | weights, feature_map=feature_map).requires_grad == normed


@pytest.mark.parametrize("layout", ["channels last", "tokens last"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("at_once", [4, 18])  # tokens of one sequence, or two of three sequences
@pytest.mark.parametrize("channels", [2, 3, 6, 16])
def test_gradients_of_products_in_blocks(channels, at_once, normed, gated, layout, monkeypatch):
    inputs = make_inputs(9, 4 * channels, 8, batch=3, gated=gated, products=True)
    if layout == "tokens last":
        inputs["r"] = inputs["r"].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    for module in (cpu_read, cpu_read_gradients):
        monkeypatch.setattr(module, "CHANNELS_AT_ONCE", at_once * HEADS * channels)
    monkeypatch.setattr(cpu_read, "ALIGNMENT", 1)
    assert_accurate(inputs if normed else without_norm(inputs), 1e-11, feature_map="quadratic")


@pytest.mark.parametrize("frozen", ["r", "state", "norm_weight"])
def test_gradients_where_something_is_frozen(frozen):
    inputs = make_inputs(9, 16, 8, products=True, gated=False)
    read = partial(state_readout, gate=None, feature_map="quadratic")
    expected = run(read, inputs)
    actual = run(partial(read, **{frozen: inputs.pop(frozen)}), {k: x for k, x in inputs.items() if x is not None})
    assert len(actual) == 4
    assert all(torch.equal(x, expected[name]) for name, x in actual.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_backward_under_autocast(dtype):
    inputs = make_inputs(20, 16, 8, products=True, gated=False, dtype=torch.float32)
    inputs["r"] = inputs["r"].to(dtype)
    expected = run(partial(state_readout, gate=None, feature_map="quadratic"), inputs | {"gate": None})
    with torch.autocast(HERE.type, torch.bfloat16):
        actual = run(partial(state_readout, gate=None, feature_map="quadratic"), inputs | {"gate": None})
    assert all(torch.equal(x, expected[name]) for name, x in actual.items())


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("feature_map", ["identity", "quadratic"])
def test_trace(feature_map):
    inputs = make_inputs(9, 16, 8, products=feature_map == "quadratic")
    read = partial(state_readout, gate=None, feature_map=feature_map)
    arguments = [inputs[name] for name in ("r", "state", "norm_weight", "norm_bias")]
    assert relative_rms(torch.jit.trace(lambda *x: read(*x), arguments)(*arguments), read(*arguments)) <= 1e-12


def test_what_was_made_in_inference_mode_is_not_overwritten_outside():
    with torch.inference_mode():
        inputs = make_inputs(9, 8, 8, gated=False)
        inputs["r"] = inputs["r"].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    with torch.no_grad():
        o = state_readout(**inputs, overwrite_r=True)
    assert relative_rms(o, oracle(**inputs)) <= 1e-12


@pytest.mark.parametrize("shape", [(2, 0), (0, 5)], ids=str)
@pytest.mark.parametrize("feature_map", ["identity", "quadratic"])
def test_nothing_is_read_by_nobody(feature_map, shape):
    batch, length = shape
    inputs = make_inputs(length, 16, 8, batch=batch, products=feature_map == "quadratic")
    found = run(partial(state_readout, feature_map=feature_map), inputs)
    assert found["o"].shape == (*shape, HEADS * 8)
    assert not any(x.any() for x in found.values())


@torch.no_grad()
@pytest.mark.parametrize("channels", [4, 8])
@pytest.mark.parametrize("layout", ["tokens last", "channels last", "expanded"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("feature_map", ["identity", "quadratic"])
def test_the_result_may_take_the_place_of_the_receptance(feature_map, normed, gated, layout, channels):
    products = feature_map == "quadratic"
    inputs = make_inputs(150, 4 * channels if products else channels, 4, gated=gated, products=products)
    inputs = inputs if normed else without_norm(inputs)
    r = inputs["r"]
    if layout == "tokens last":
        r = r.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    elif layout == "expanded":
        r = r[:, :1].expand_as(r)
    expected = state_readout(**inputs | {"r": r.clone()}, feature_map=feature_map)
    o = state_readout(**inputs | {"r": r}, feature_map=feature_map, overwrite_r=True)
    assert torch.equal(o, expected)
    in_place = layout == "tokens last" and channels == 4 and not gated
    assert (o.data_ptr() == r.data_ptr()) == in_place


@pytest.mark.parametrize("size", [(16, 128), (128, 16), (100, 17), (2, 5)], ids=str)
def test_triton_sizes(size):
    assert_accurate(make_inputs(5, *size, batch=1, dtype=torch.float32), 1e-5, "triton")


@pytest.mark.parametrize("programs", [1, 9, 528])
@pytest.mark.parametrize("length", [1, 32, 100])
def test_triton_groups_of_blocks(length, programs, monkeypatch):
    monkeypatch.setattr(triton_readout, "PROGRAMS", programs)
    assert_accurate(make_inputs(length, 16, 24, batch=1, dtype=torch.float32), 1e-5, "triton")


@pytest.mark.full
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (16, 16), (128, 128), (33, 127)], ids=str)
@pytest.mark.parametrize("length", [1, 33, 77, 300])
def test_grid(length, size, normed, dtype):
    inputs = make_inputs(length, *size, dtype=dtype)
    assert_accurate(inputs if normed else without_norm(inputs), ERROR_BARS[dtype], "triton")
    inputs = make_inputs(length, size[0] // 4 * 4, size[1], products=True, dtype=dtype)
    inputs = inputs if normed else without_norm(inputs)
    assert_accurate(inputs, ERROR_BARS[dtype], "triton", feature_map="quadratic")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_dtype_is_that_of_the_receptance(dtype):
    """As in training: states and norm in float32, receptance and gate in the weights' dtype."""
    inputs = make_inputs(20, dtype=torch.float32)
    inputs |= {name: inputs[name].to(dtype) for name in ("r", "gate")}
    assert state_readout(**inputs).dtype == dtype
    assert_accurate(inputs, max(ERROR_BARS[dtype], 1e-5))


def test_float64_receptance_is_read_in_float64():
    inputs = make_inputs(20, dtype=torch.float32) | {"r": make_inputs(20)["r"]}
    assert relative_rms(state_readout(**inputs), oracle(**{name: x.double() for name, x in inputs.items()})) <= 1e-12


def test_autocast_stays_outside():
    inputs = make_inputs(20, dtype=torch.float32)
    with torch.autocast(HERE.type, torch.bfloat16):
        o = state_readout(**inputs)
    assert relative_rms(o, oracle(**{name: x.double() for name, x in inputs.items()})) <= 1e-5


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("feature_map", ["identity", "quadratic"])
def test_gradcheck(feature_map, gated):
    inputs = make_inputs(3, 8, 4, gated=gated, products=feature_map == "quadratic")
    leaves = [x.requires_grad_() for x in inputs.values() if x is not None]
    assert torch.autograd.gradcheck(partial(state_readout, feature_map=feature_map), leaves)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("feature_map", ["identity", "quadratic"])
def test_gradgradcheck(feature_map, normed):
    inputs = make_inputs(3, 8, 4, gated=False, products=feature_map == "quadratic")
    leaves = [x.requires_grad_() for x in (inputs if normed else without_norm(inputs)).values() if x is not None]
    read = partial(state_readout, feature_map=feature_map)
    assert torch.autograd.gradgradcheck(read if normed else lambda *x: read(*x, None, None), leaves)


def test_a_path_through_the_state_counts_once():
    """A second derivative where the receptance was computed from the state."""
    inputs = make_inputs(1, 8, 2, batch=1, gated=False, products=True)

    def energy(state, function):
        r = state[:, :, 0, None, :2].transpose(1, 2)
        return function(r, state, inputs["norm_weight"], inputs["norm_bias"], None, EPS, feature_map="quadratic").sum()

    state = inputs["state"].requires_grad_()
    found = []
    for function in (state_readout, oracle):
        (gradient,) = torch.autograd.grad(energy(state, function), state, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), state)[0])
    torch.testing.assert_close(*found)


@BOTH
def test_gradients_of_strided_inputs(backend, stride):
    inputs = make_inputs(9, 24, 40, dtype=torch.float32)
    assert_accurate({name: stride(x) for name, x in inputs.items()}, 1e-5, backend)
    inputs["r"] = inputs["r"].transpose(1, 2).contiguous().transpose(1, 2)  # heads apart
    inputs["state"] = inputs["state"].mT.contiguous().mT
    assert_accurate(inputs, 1e-5, backend)


def test_strided_inputs():
    inputs = make_inputs()
    strided = {name: x.mT.contiguous().mT if x.ndim > 1 else x for name, x in inputs.items()}
    torch.testing.assert_close(state_readout(**strided), state_readout(**inputs))


@pytest.mark.parametrize("eps", [1e-6, 1e-2, 10.0])
def test_eps(eps):
    inputs = make_inputs()
    assert relative_rms(state_readout(**inputs, eps=eps), oracle(**inputs, eps=eps)) <= 1e-12


def test_eps_default_is_that_of_64_wide_heads():
    inputs = make_inputs()
    assert torch.equal(state_readout(**inputs), state_readout(**inputs, eps=64e-5))


def test_an_empty_state_reads_the_bias():
    inputs = make_inputs(gated=False)
    o = state_readout(**inputs | {"state": torch.zeros_like(inputs["state"])})
    assert torch.equal(o, inputs["norm_bias"].expand_as(o))


def test_tokens_are_read_alone():
    inputs = make_inputs()
    order = torch.randperm(9, generator=seeded(0))
    permuted = inputs | {name: inputs[name][:, order] for name in ("r", "gate")}
    torch.testing.assert_close(state_readout(**permuted), state_readout(**inputs)[:, order], rtol=1e-12, atol=1e-12)


def test_without_norm():
    inputs = make_inputs(5, 16, 8) | {"norm_weight": None, "norm_bias": None}
    expected = torch.einsum("bthk,bhvk->bthv", inputs["r"], inputs["state"]).flatten(-2) * inputs["gate"]
    torch.testing.assert_close(state_readout(**inputs), expected)


def test_length_0():
    assert state_readout(**make_inputs(0, 16, 8)).shape == (2, 0, 24)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"feature_map": "relu"}, ValueError, "`feature_map` must be one of identity, silu, quadratic, got 'relu'"),
        (
            {"feature_map": "quadratic"},
            ValueError,
            r"K of `r`, 4 features of each channel, got \[2, 3, 8, 16\] and \[2, 9, 3, 16\]",
        ),
        ({"eps": 0}, ValueError, r"`eps` must be positive, got 0; .* head_dim \* 1e-5"),
        ({"eps": -1e-5}, ValueError, "`eps` must be positive, got -1e-05"),
        ({"eps": float("nan")}, ValueError, "`eps` must be positive, got nan"),
        ({"r": torch.zeros(2, 9, 48)}, ValueError, r"`r` must be \[B, T, H, K\], got \[2, 9, 48\]"),
        ({"state": torch.zeros(2, 3, 16)}, ValueError, r"`state` must be \[B, H, V, K\], got \[2, 3, 16\]"),
        (
            {"state": torch.zeros(2, 3, 8, 15)},
            ValueError,
            r"`state` must be .* got \[2, 3, 8, 15\] and \[2, 9, 3, 16\]",
        ),
        ({"state": torch.zeros(2, 3, 16, 8)}, ValueError, r"`state` must be .* got \[2, 3, 16, 8\]"),
        ({"state": torch.zeros(2, 4, 8, 16)}, ValueError, r"`state` must be .* got \[2, 4, 8, 16\]"),
        ({"state": torch.zeros(1, 3, 8, 16)}, ValueError, r"`state` must be .* got \[1, 3, 8, 16\]"),
        ({"norm_weight": torch.zeros(48)}, ValueError, r"`norm_weight` must be \[H \* V\] = \[24\], got \[48\]"),
        ({"norm_bias": None}, ValueError, "`norm_weight` and `norm_bias` must both be given or both be None"),
        ({"norm_bias": torch.zeros(3, 8)}, ValueError, r"`norm_bias` must be \[H \* V\] = \[24\], got \[3, 8\]"),
        ({"gate": torch.zeros(2, 9, 3, 8)}, ValueError, r"`gate` .* = \[2, 9, 24\], got \[2, 9, 3, 8\]"),
        ({"gate": torch.zeros(2, 1, 24)}, ValueError, r"`gate` .* = \[2, 9, 24\], got \[2, 1, 24\]"),
        ({"gate": torch.zeros(2, 9, 24, dtype=torch.int8)}, TypeError, "`gate` must be a floating .* torch.int8"),
        (
            {"state": torch.zeros(2, 3, 8, 16, dtype=torch.int64)},
            TypeError,
            "`state` must be a floating .* torch.int64",
        ),
        ({"state": None}, TypeError, "`state` must be a floating point tensor, got None"),
        ({"state": torch.zeros(2, 3, 8, 16, device="meta")}, ValueError, f"got {HERE} and, for `state`, meta"),
    ],
)
def test_errors(change, error, message):
    inputs = make_inputs(9, 16, 8, dtype=torch.float32)
    with pytest.raises(error, match=message):
        state_readout(**inputs | change)
