"""`scan_readout` against equations 14 to 16, with `torch.nn.GroupNorm`, in float64."""

import itertools

import pytest
import torch
from crosswkv_kernels import scan_readout
from generators import HERE, seeded

pytestmark = pytest.mark.usefixtures("poisoned_memory")
EPS, HEADS = 64e-5, 3
ERROR_BARS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 5e-3}
RUNS = [
    ("chunked", torch.float64),
    *itertools.product(("chunked", "triton"), (torch.float32, torch.bfloat16, torch.float16)),
]
ALL_RUNS = pytest.mark.parametrize(("backend", "dtype"), RUNS, ids=str)
BOTH = pytest.mark.parametrize("backend", ["triton", "chunked"])


def make_inputs(length=9, K=16, V=16, *, rest=0, batch=2, normed=True, dtype=torch.float64, seed=0):
    """Random arguments; the heads' outputs differ in size, so that `eps` counts for one and not for another.

    As in training, parameters and the key are float32 at least.
    """
    generator = seeded(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    size = torch.logspace(-2, 1, HEADS, dtype=torch.float64)[:, None]
    streams = {
        "o": randn(batch, length, HEADS, V) * size,
        "r": randn(batch, length, HEADS, K),
        "v": randn(batch, length, HEADS, V),
        "gate": randn(batch, length + rest, HEADS * V),
    }
    others = {"k": randn(batch, length, HEADS, K), "r_k": randn(HEADS, K) / K**0.5}
    others |= {"norm_weight": 1 + randn(HEADS * V) / 4, "norm_bias": randn(HEADS * V) / 4}
    wide = torch.promote_types(dtype, torch.float32)
    inputs = {name: x.to(dtype) for name, x in streams.items()} | {name: x.to(wide) for name, x in others.items()}
    return inputs if normed else inputs | {"norm_weight": None, "norm_bias": None}


def oracle(o, r, k, v, r_k, norm_weight, norm_bias, gate, eps=EPS):
    def pad(x):
        return torch.cat((x, x.new_zeros(len(x), gate.shape[1] - x.shape[1], *x.shape[2:])), dim=1)

    o, r, k, v = (pad(x) for x in (o, r, k, v))
    normed = o.flatten(2)
    if norm_weight is not None:
        norm = torch.nn.GroupNorm(HEADS, normed.shape[-1], eps=eps, affine=False, dtype=o.dtype)
        normed = norm(normed.flatten(0, 1)).view_as(normed) * norm_weight + norm_bias
    bonus = torch.einsum("bthk,bthk,hk,bthv->bthv", r, k, r_k, v).flatten(2)
    return (normed + bonus) * gate


def to_double(inputs):
    return {name: x if x is None else x.double() for name, x in inputs.items()}


def run(function, inputs):
    leaves = {name: x if x is None else x.detach().requires_grad_() for name, x in inputs.items()}
    y = function(**leaves)
    cotangent = torch.randn(y.shape, generator=seeded(1)).bfloat16().to(y.dtype)
    given = {name: x for name, x in leaves.items() if x is not None}
    gradients = torch.autograd.grad(y, list(given.values()), cotangent)
    return {"y": y} | {f"d_{name}": x for name, x in zip(given, gradients, strict=True)}


def relative_rms(name, actual, expected):
    """RMS of the error over RMS of the expected, of the worst head."""
    assert actual.shape == expected.shape

    def heads_first(x):
        x = x.double() if name in ("d_o", "d_r", "d_k", "d_v", "d_r_k") else x.double().unflatten(-1, (HEADS, -1))
        return x.movedim(-2, 0).flatten(1)

    actual, expected = heads_first(actual), heads_first(expected)
    return ((actual - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


def assert_accurate(inputs, backend, dtype, **options):
    expected = run(lambda **x: oracle(**x, **options), to_double(inputs))
    actual = run(lambda **x: scan_readout(**x, **options, backend=backend), inputs)
    assert actual["y"].dtype == inputs["gate"].dtype
    errors = {name: relative_rms(name, actual[name], x) for name, x in expected.items()}
    wrong = {name: error for name, error in errors.items() if not error <= ERROR_BARS[dtype]}
    assert not wrong, f"{backend}: {wrong}"


@ALL_RUNS
@pytest.mark.parametrize("normed", [False, True])
def test_equations(normed, backend, dtype):
    assert_accurate(make_inputs(21, 24, 40, rest=3, normed=normed, dtype=dtype), backend, dtype)


@pytest.mark.parametrize("size", [(16, 128), (128, 16), (100, 17)], ids=str)
def test_sizes(size):
    assert_accurate(make_inputs(5, *size, batch=1, dtype=torch.float32), "triton", torch.float32)


@BOTH
@pytest.mark.parametrize(("length", "rest"), [(1, 0), (1, 80), (65, 0), (64, 66)])
def test_lengths(length, rest, backend):
    assert_accurate(make_inputs(length, 32, 32, rest=rest, dtype=torch.float32), backend, torch.float32)


@pytest.mark.full
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(64, 64), (16, 16), (128, 128), (33, 127)], ids=str)
@pytest.mark.parametrize(("length", "rest"), [(16, 0), (17, 80), (77, 0), (300, 20)])
def test_grid(length, rest, size, dtype):
    assert_accurate(make_inputs(length, *size, rest=rest, batch=1, dtype=dtype), "triton", dtype)


@BOTH
def test_behind_the_end_stands_the_bias(backend):
    inputs = make_inputs(4, rest=5, dtype=torch.float32)
    y = scan_readout(**inputs, backend=backend)
    torch.testing.assert_close(y[:, 4:], inputs["norm_bias"] * inputs["gate"][:, 4:])
    inputs |= {"norm_weight": None, "norm_bias": None}
    assert not scan_readout(**inputs, backend=backend)[:, 4:].any()


@BOTH
def test_nothing_scanned(backend):
    inputs = make_inputs(4, rest=5, dtype=torch.float32)
    inputs |= {name: inputs[name][:, :0] for name in ("o", "r", "k", "v")}
    y = scan_readout(**inputs, backend=backend)
    torch.testing.assert_close(y, inputs["norm_bias"] * inputs["gate"])


@BOTH
def test_strided_inputs(backend, stride):
    inputs = make_inputs(9, 24, 40, rest=2, dtype=torch.float32)
    strided = {name: stride(x) for name, x in inputs.items()}
    expected, actual = (run(lambda **x: scan_readout(**x, backend=backend), y) for y in (inputs, strided))
    for name, x in expected.items():
        torch.testing.assert_close(actual[name], x, rtol=1e-5, atol=1e-5, msg=name)


@BOTH
@pytest.mark.parametrize("eps", [1e-6, 10])
def test_eps(eps, backend):
    assert_accurate(make_inputs(dtype=torch.float32), backend, torch.float32, eps=eps)


@BOTH
def test_dtypes_may_differ(backend):
    inputs = make_inputs(9, rest=2, dtype=torch.float32)
    inputs |= {name: inputs[name].bfloat16() for name in ("o", "gate", "norm_bias")}
    inputs |= {name: inputs[name].half() for name in ("k", "v")}
    assert_accurate(inputs, backend, torch.bfloat16)


def test_gradcheck():
    inputs = make_inputs(3, 2, 4, rest=1, batch=1)

    def function(*args):
        return scan_readout(**dict(zip(inputs, args, strict=True)))

    assert torch.autograd.gradcheck(function, [x.requires_grad_() for x in inputs.values()])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"eps": 0}, ValueError, r"`eps` must be positive, got 0; .* head_dim \* 1e-5"),
        ({"o": torch.zeros(2, 9, 48)}, ValueError, r"`o` must have the shape of `v`, got \[2, 9, 48\]"),
        ({"v": torch.zeros(2, 9, 48)}, ValueError, r"`v` must be \[B, R, H, V\], got \[2, 9, 48\]"),
        ({"r": torch.zeros(2, 9, 48)}, ValueError, r"`r` must be \[B, R, H, K\], got \[2, 9, 48\]"),
        ({"k": torch.zeros(2, 9, 3, 15)}, ValueError, r"`k` must have the shape of `r`, got \[2, 9, 3, 15\]"),
        ({"r": torch.zeros(2, 8, 3, 16), "k": torch.zeros(2, 8, 3, 16)}, ValueError, "with the B, R and H of `v`"),
        ({"r_k": torch.zeros(48)}, ValueError, r"`r_k` must be \[H, K\] = \[3, 16\], got \[48\]"),
        ({"norm_bias": None}, ValueError, "`norm_weight` and `norm_bias` must both be given or both be None"),
        ({"norm_weight": torch.zeros(16)}, ValueError, r"`norm_weight` must be \[H \* V\] = \[48\], got \[16\]"),
        ({"gate": torch.zeros(2, 8, 48)}, ValueError, r"`gate` .* = \[2, at least 9, 48\], got \[2, 8, 48\]"),
        ({"gate": None}, TypeError, "`gate` must be a floating point tensor, got None"),
        ({"gate": torch.zeros(2, 9, 48, device="meta")}, ValueError, f"got {HERE} and, for `gate`, meta"),
    ],
)
def test_errors(change, error, message):
    with pytest.raises(error, match=message):
        scan_readout(**make_inputs(dtype=torch.float32) | change)
