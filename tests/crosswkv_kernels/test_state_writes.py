"""`state_writes` against equations 8 to 12, word for word in float64."""

import itertools
import math

import pytest
import torch
from crosswkv_kernels import state_writes, wkv7
from generators import HERE, seeded

pytestmark = pytest.mark.usefixtures("poisoned_memory")
HEADS = 3
ERROR_BARS = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 5e-3}
RUNS = [
    ("chunked", torch.float64),
    *itertools.product(("chunked", "triton"), (torch.float32, torch.bfloat16, torch.float16)),
]
ALL_RUNS = pytest.mark.parametrize(("backend", "dtype"), RUNS, ids=str)
BOTH = pytest.mark.parametrize("backend", ["triton", "chunked"])
RESULTS = ("w", "k", "v", "kappa", "a")


def make_inputs(
    length=9, K=16, V=16, *, batch=2, residual=True, masked=True, products=False, dtype=torch.float64, seed=0
):
    """Random arguments; heads differ in size. Parameters stay float32, as in training.

    `products` are those that `state` fusion passes with the feature map `quadratic`.
    """
    generator = seeded(seed)

    def randn(*shape, scale=None):
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        return x if scale is None else (x.unflatten(-1, (HEADS, -1)) * scale).flatten(-2)

    size = torch.logspace(-1, 0.5, HEADS, dtype=torch.float64)[:, None]
    rates, channels = (HEADS, HEADS * K // 4) if products else (HEADS * K, HEADS * K)
    streams = {name: randn(batch, length, rates, scale=size.flip(0)) for name in ("decay", "rate")}
    streams["key"] = randn(batch, length, channels, scale=size)
    for name in ("value", "first_value", "value_share")[: 3 if residual else 1]:
        streams[name] = randn(batch, length, HEADS * V)
    parameters = {"k_k": 0.8 + randn(HEADS * K) / 8, "k_a": 1 + randn(rates) / 4}
    parameter_dtype = torch.promote_types(dtype, torch.float32)
    inputs = {name: x.to(dtype) for name, x in streams.items()}
    inputs |= {name: x.to(parameter_dtype) for name, x in parameters.items()}
    mask = torch.rand(batch, length, generator=generator) > 0.3
    inputs |= {"num_heads": HEADS, "mask": mask if masked else None}
    return inputs | {"k_k": None, "feature_map": "quadratic"} if products else inputs


def oracle(
    decay, rate, key, value, k_k, k_a, num_heads, first_value=None, value_share=None, mask=None, feature_map="identity"
):
    key = key.unflatten(-1, (num_heads, -1))
    if feature_map == "silu":
        key = key / (1 + (-key).exp())
    if feature_map == "quadratic":
        n = key.shape[-1]
        pairs = [(i, (i + j) % n, 2**0.5 if j else 1) for j in range(4) for i in range(n)]
        key = torch.stack([key[..., i] * key[..., j] * factor for i, j, factor in pairs], -1) / (
            n**0.5 * (key.square().sum(-1, keepdim=True) / n + 1e-4)
        )
    w = -math.exp(-0.5) / (1 + (-decay).exp())
    a = 1 / (1 + (-rate).exp())
    if first_value is not None:
        share = 1 / (1 + (-value_share).exp())
        value = value * (1 - share) + first_value * share
    w, v, a, k_a = (x.unflatten(-1, (num_heads, -1)) for x in (w, value, a, k_a))
    z = key if k_k is None else key * k_k.unflatten(-1, (num_heads, -1))
    norm = z.square().sum(-1, keepdim=True)
    norm = torch.where(norm > 0, norm, 1).sqrt() * (norm > 0)  # of a zero: 0, and no gradient
    kappa = z / torch.where(norm > 1e-12, norm, 1e-12)
    multiples = k_k is None and a.shape[-1] == 1 and key.shape[-1] > 1
    k = (norm if multiples else key) * (1 + (a - 1) * k_a)  # what kappa is multiplied by, or the key
    results = (w, k, v, kappa, a)
    return results if mask is None else tuple(torch.where(mask[:, :, None, None], x, 0) for x in results)


def is_float(x):
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def to_double(inputs):
    return {
        name: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for name, x in inputs.items()
    }


def run(function, inputs):
    """Results and every gradient, for cotangents that every dtype represents."""
    leaves = {name: x.detach().requires_grad_() if is_float(x) else x for name, x in inputs.items()}
    results = function(**leaves)
    generator = seeded(1)
    cotangents = [torch.randn(x.shape, generator=generator).bfloat16().to(x.dtype) for x in results]
    floats = {name: x for name, x in leaves.items() if isinstance(x, torch.Tensor) and x.requires_grad}
    gradients = torch.autograd.grad(results, list(floats.values()), cotangents)
    return dict(zip((*RESULTS, *(f"d_{name}" for name in floats)), (*results, *gradients), strict=True))


def relative_rms(name, actual, expected):
    """RMS of the error over RMS of the expected, of the worst head."""
    assert actual.shape == expected.shape

    def heads_first(x):
        x = x.double() if name in RESULTS else x.double().unflatten(-1, (HEADS, -1))
        return x.movedim(-2, 0).flatten(1)

    actual, expected = heads_first(actual), heads_first(expected)
    if expected.shape[1] == 1:  # one number per head, a sum over all tokens that may cancel: all heads together
        actual, expected = actual.T, expected.T
    return ((actual - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


def assert_accurate(inputs, backend, dtype, **options):
    expected = run(lambda **x: oracle(**x, **options), to_double(inputs))
    actual = run(lambda **x: state_writes(**x, **options, backend=backend), inputs)
    errors = {name: relative_rms(name, actual[name], x) for name, x in expected.items()}
    bars = {name: max(ERROR_BARS[actual[name].dtype], ERROR_BARS[dtype]) for name in errors}
    wrong = {name: error for name, error in errors.items() if not error <= bars[name]}
    assert not wrong, f"{backend}: {wrong}"


@ALL_RUNS
@pytest.mark.parametrize("feature_map", ["identity", "silu"])
def test_equations(feature_map, backend, dtype):
    assert_accurate(make_inputs(21, 24, 40, dtype=dtype), backend, dtype, feature_map=feature_map)


@ALL_RUNS
@pytest.mark.parametrize("channels", [2, 3, 6, 16])
def test_products(channels, backend, dtype):
    """Keys by products of channels; heads have one decay and one rate each."""
    inputs = make_inputs(21, 4 * channels, 16, products=True, dtype=dtype)
    assert_accurate(inputs, backend, dtype)


@pytest.mark.parametrize(("backend", "dtype"), [("chunked", torch.float64), ("triton", torch.float32)], ids=str)
@pytest.mark.parametrize("feature_map", ["identity", "quadratic"])
@pytest.mark.parametrize("of_heads", [("decay",), ("rate", "k_a"), ("k_k",), ("rate", "k_a", "k_k")], ids=str)
def test_what_heads_have_once(of_heads, feature_map, backend, dtype):
    """Each of decay and rate, with its `k_a`, is one per head or per feature; a missing `k_k` is one.

    With one rate for a head and no `k_k`, so is the size of k.
    """
    inputs = make_inputs(9, 24, 16, dtype=dtype)
    if feature_map == "quadratic":
        inputs["key"] = inputs["key"][..., : HEADS * 6]
    for name in of_heads:
        inputs[name] = None if name == "k_k" else inputs[name][..., :HEADS]
    assert_accurate(inputs, backend, dtype, feature_map=feature_map)


@BOTH
@pytest.mark.parametrize("channels", [1, 2])
def test_keys_make_the_same_state_whether_they_are_multiples_or_not(channels, backend):
    """Of one channel too, where a key is more than its size: it has a sign."""
    inputs = make_inputs(9, channels, 4, dtype=torch.float32)
    inputs |= {name: inputs[name][..., :HEADS] for name in ("rate", "k_a")} | {"k_k": None}
    ones = torch.ones(HEADS * channels)
    few, many = (state_writes(**inputs | {"k_k": x}, backend=backend) for x in (None, ones))
    assert few.k.shape[-1] == 1
    torch.testing.assert_close(few.keys, many.keys)
    torch.testing.assert_close(wkv7(None, *few)[1], wkv7(None, *many)[1])


@pytest.mark.parametrize(("backend", "dtype"), [("chunked", torch.float64), ("triton", torch.float32)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_parts_left_out(residual, masked, backend, dtype):
    assert_accurate(make_inputs(9, residual=residual, masked=masked, dtype=dtype), backend, dtype)


@pytest.mark.parametrize("size", [(16, 128), (128, 16), (100, 17)], ids=str)
def test_sizes(size):
    assert_accurate(make_inputs(5, *size, batch=1, dtype=torch.float32), "triton", torch.float32, feature_map="silu")


@pytest.mark.parametrize("length", [1, 65, 130])
def test_lengths(length):
    inputs = make_inputs(length, 32, 32, masked=length > 1, dtype=torch.float32)
    assert_accurate(inputs, "triton", torch.float32, feature_map="silu")


@pytest.mark.full
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(64, 64), (16, 16), (128, 128), (33, 127)], ids=str)
@pytest.mark.parametrize("length", [16, 77, 300])
def test_grid(length, size, dtype):
    assert_accurate(make_inputs(length, *size, batch=1, dtype=dtype), "triton", dtype, feature_map="silu")
    products = make_inputs(length, size[0] // 4 * 4, size[1], batch=1, products=True, dtype=dtype)
    assert_accurate(products, "triton", dtype)


@BOTH
@pytest.mark.parametrize("products", [False, True])
def test_strided_inputs(products, backend, stride):
    inputs = make_inputs(9, 24, 40, products=products, dtype=torch.float32)
    strided = {name: stride(x) if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    strided["mask"] = inputs["mask"].T.contiguous().T
    expected, actual = (run(lambda **x: state_writes(**x, backend=backend), y) for y in (inputs, strided))
    for name, x in expected.items():
        torch.testing.assert_close(actual[name], x, rtol=1e-5, atol=1e-5, msg=name)


@BOTH
def test_expanded_biases(backend):
    """A LoRA of rank 0 returns its bias for every token."""
    inputs = make_inputs(9, dtype=torch.float32)
    for name in ("decay", "rate", "value_share"):
        inputs[name] = inputs[name][0, 0].expand_as(inputs[name])
    assert_accurate(inputs, backend, torch.float32)


@BOTH
@pytest.mark.parametrize("feature_map", ["identity", "silu"])
def test_zero_keys(backend, feature_map):
    inputs = make_inputs(9, masked=False, dtype=torch.float32)
    inputs["key"][:, ::2, : inputs["key"].shape[2] // HEADS] = 0  # of the first head
    actual = run(lambda **x: state_writes(**x, feature_map=feature_map, backend=backend), inputs)
    assert all(x.isfinite().all() for x in actual.values())
    assert not actual["kappa"][:, ::2, 0].any()
    expected = run(lambda **x: oracle(**x, feature_map=feature_map), to_double(inputs))
    for name, x in expected.items():
        assert relative_rms(name, actual[name], x) <= 1e-5, name


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # in Triton's interpreter: 1 / (1 + inf) is right
@BOTH
def test_saturated_activations(backend):
    inputs = make_inputs(9, masked=False, dtype=torch.float32)
    inputs |= {name: 12 * inputs[name] for name in ("decay", "rate", "value_share")}
    assert_accurate(inputs, backend, torch.float32, feature_map="silu")


@BOTH
@pytest.mark.parametrize("products", [False, True])
def test_masked_tokens_write_nothing_whatever_they_hold(products, backend):
    inputs = make_inputs(9, products=products, dtype=torch.float32)
    mask = inputs["mask"]
    expected = state_writes(**inputs, backend=backend)
    changed = inputs | {
        name: torch.where(mask[:, :, None], inputs[name], 1e3) for name in ("decay", "rate", "key", "value")
    }
    for x, y in zip(state_writes(**changed, backend=backend), expected, strict=True):
        assert torch.equal(x, y)
        assert not x[~mask].any()


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_dtypes(backend, dtype):
    write = state_writes(**make_inputs(dtype=dtype), backend=backend)
    assert write.v.dtype == dtype
    assert {x.dtype for x in (write.w, write.k, write.kappa, write.a)} == {torch.float32}
    assert state_writes(**make_inputs(dtype=torch.float64)).k.dtype == torch.float64


@BOTH
def test_dtypes_may_differ(backend):
    inputs = make_inputs(9, dtype=torch.float32)
    inputs |= {name: inputs[name].bfloat16() for name in ("decay", "value")}
    inputs |= {name: inputs[name].half() for name in ("key", "first_value", "k_k")}
    assert_accurate(inputs, backend, torch.float32)
    assert state_writes(**inputs, backend=backend).v.dtype == torch.bfloat16


@pytest.mark.parametrize("products", [False, True])
def test_gradcheck(products):
    inputs = make_inputs(3, 8, 3, products=products)
    tensors = {name: x.requires_grad_() for name, x in inputs.items() if is_float(x)}

    def function(*args):
        return state_writes(**({"feature_map": "silu"} | inputs | dict(zip(tensors, args, strict=True))))

    assert torch.autograd.gradcheck(function, list(tensors.values()))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"feature_map": "relu"}, ValueError, "`feature_map` must be one of identity, silu, quadratic, got 'relu'"),
        ({"num_heads": 5}, ValueError, "`num_heads` must divide the width of `key`, got 5 and 48"),
        ({"num_heads": 0}, ValueError, "`num_heads` must divide the width of `key`, got 0 and 48"),
        ({"key": torch.zeros(2, 9, 3, 16)}, ValueError, r"`key` must be \[B, T, H \* K\], got \[2, 9, 3, 16\]"),
        ({"value": torch.zeros(2, 48)}, ValueError, r"`value` must be \[B, T, H \* V\], got \[2, 48\]"),
        ({"value": torch.zeros(2, 8, 48)}, ValueError, r"`value` must .* `key`, got \[2, 8, 48\] and \[2, 9, 48\]"),
        ({"decay": torch.zeros(2, 9, 47)}, ValueError, r"`decay` must be .* H \* K = 48 and .*, got \[2, 9, 47\]"),
        ({"rate": torch.zeros(48)}, ValueError, r"`rate` must be \[B, T, H \* K\] or \[B, T, H\].*, got \[48\]"),
        ({"feature_map": "quadratic"}, ValueError, r"`decay` must be .* H \* K = 192 and .*, got \[2, 9, 48\]"),
        ({"first_value": torch.zeros(2, 9, 1)}, ValueError, "`first_value` must have the shape of `value`"),
        ({"value_share": None}, ValueError, "`first_value` and `value_share` must both be given or both be None"),
        ({"k_k": torch.zeros(3, 16)}, ValueError, r"`k_k` must be \[H \* K\] = \[48\], got \[3, 16\]"),
        ({"k_a": torch.zeros(1)}, ValueError, r"`k_a` must be as wide as `rate`, \[48\], got \[1\]"),
        ({"k_a": torch.zeros(3)}, ValueError, r"`k_a` must be as wide as `rate`, \[48\], got \[3\]"),
        ({"mask": torch.ones(2, 9)}, TypeError, r"`mask` must be a boolean .* got torch.float32; .*\.bool\(\)"),
        ({"mask": torch.ones(9).bool()}, ValueError, r"`mask` must be \[B, T\] = \[2, 9\], got \[9\]"),
        ({"mask": torch.ones(2, 9, device="meta").bool()}, ValueError, f"got {HERE} and, for `mask`, meta"),
        ({"key": torch.zeros(2, 9, 48).int()}, TypeError, "`key` must be a floating point tensor, got torch.int32"),
        ({"k_a": torch.zeros(48, device="meta")}, ValueError, f"got {HERE} and, for `k_a`, meta"),
    ],
)
def test_errors(change, error, message):
    with pytest.raises(error, match=message):
        state_writes(**make_inputs(dtype=torch.float32) | change)
