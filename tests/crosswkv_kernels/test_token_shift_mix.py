"""`token_shift_mix` against equations 4 and 5, in float64."""

import random
from functools import partial

import pytest
import torch
from crosswkv_kernels import token_shift_mix
from generators import HERE, seeded

pytestmark = pytest.mark.usefixtures("poisoned_memory")
BOTH = pytest.mark.parametrize("backend", ["triton", "chunked"])
ERROR_BARS = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 5e-3}
DTYPES = pytest.mark.parametrize("dtype", ERROR_BARS, ids=str)


def make_inputs(batch=2, length=7, width=5, ways=3, *, dtype=torch.float64, seed=0):
    generator = seeded(seed)
    x, previous = torch.randn(2, batch, length, width, generator=generator, dtype=torch.float64).to(dtype)
    mu = torch.rand(ways, width, generator=generator, dtype=torch.float64).to(dtype)
    return x, mu, previous


def oracle(x, mu, previous=None):
    """x_n = (1 - mu_n) x + mu_n previous, in float64; zeros stand before the first token."""
    x, mu = x.double(), mu.double()
    if previous is None:
        previous = torch.stack([x[:, t - 1] if t else 0 * x[:, 0] for t in range(x.shape[1])], dim=1)
    return torch.stack([(1 - mu_n) * x + mu_n * previous.double() for mu_n in mu])


def relative_rms(actual, expected):
    assert actual.shape == expected.shape
    return ((actual.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("seed", range(25))
def test_formula(seed):
    draw = random.Random(seed).randint
    x, mu, previous = make_inputs(*(draw(1, 9) for _ in range(4)), seed=seed)
    previous = previous if seed % 2 else None
    assert relative_rms(token_shift_mix(x, mu, previous), oracle(x, mu, previous)) <= 1e-14


@DTYPES
@pytest.mark.parametrize("with_previous", [False, True])
def test_dtypes(dtype, with_previous):
    x, mu, previous = make_inputs(2, 77, 64, dtype=dtype)
    previous = previous if with_previous else None
    mixed = token_shift_mix(x, mu, previous)
    assert mixed.dtype == dtype
    assert relative_rms(mixed, oracle(x, mu, previous)) <= ERROR_BARS[dtype]


def run(function, inputs):
    """The mixes and the gradient of every input, for a cotangent that every dtype represents."""
    leaves = [x.detach().requires_grad_() for x in inputs if x is not None]
    mixed = function(*leaves)
    cotangent = torch.randn(mixed.shape, generator=seeded(1)).bfloat16().to(mixed.dtype)
    return mixed, *torch.autograd.grad(mixed, leaves, cotangent)


def assert_accurate(inputs, backend, bar):
    expected = run(oracle, [x if x is None else x.double() for x in inputs])
    actual = run(partial(token_shift_mix, backend=backend), inputs)
    for name, x, y in zip(("mixed", "dx", "dmu", "dprevious"), actual, expected, strict=False):
        assert relative_rms(x, y) <= bar, name


GRADIENT_BARS = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 5e-3}


@BOTH
@pytest.mark.parametrize("dtype", GRADIENT_BARS, ids=str)
@pytest.mark.parametrize("with_previous", [False, True])
@pytest.mark.parametrize(("length", "width", "ways"), [(1, 16, 1), (33, 70, 5)])
def test_gradients(length, width, ways, with_previous, dtype, backend):
    x, mu, previous = make_inputs(2, length, width, ways)
    inputs = (x.to(dtype), mu.float(), previous.to(dtype) if with_previous else None)
    assert_accurate(inputs, backend, GRADIENT_BARS[dtype])


@pytest.mark.full
@pytest.mark.parametrize("dtype", GRADIENT_BARS, ids=str)
@pytest.mark.parametrize("with_previous", [False, True])
@pytest.mark.parametrize("width", [16, 100, 320])
@pytest.mark.parametrize("length", [1, 31, 32, 33, 77, 300])
def test_grid(length, width, with_previous, dtype):
    inputs = make_inputs(2, length, width, 4, dtype=dtype)[: 3 if with_previous else 2]
    assert_accurate(inputs, "triton", GRADIENT_BARS[dtype])


@BOTH
@pytest.mark.parametrize("with_previous", [False, True])
def test_gradients_of_strided_inputs(with_previous, backend, stride):
    inputs = make_inputs(2, 9, 24, dtype=torch.float32)[: 3 if with_previous else 2]
    assert_accurate([stride(x) for x in inputs], backend, 1e-5)


@BOTH
def test_a_strided_cotangent(backend):
    x, mu, _ = make_inputs(2, 9, 24, dtype=torch.float32)

    def turned(x, mu, **options):
        return token_shift_mix(x, mu, **options).permute(3, 2, 0, 1)

    expected = run(lambda x, mu: oracle(x, mu).permute(3, 2, 0, 1), (x.double(), mu.double()))
    for y, z in zip(run(partial(turned, backend=backend), (x, mu)), expected, strict=True):
        assert relative_rms(y, z) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtype_is_that_of_x(dtype):
    x, mu, previous = make_inputs(2, 77, 64)
    x, mu = x.to(dtype), mu.float()
    for before in (None, previous.to(dtype)):
        mixed = token_shift_mix(x, mu, before)
        assert mixed.dtype == dtype
        assert relative_rms(mixed, oracle(x, mu, before)) <= ERROR_BARS[dtype]


@pytest.mark.parametrize("with_previous", [False, True])
def test_gradcheck(with_previous):
    inputs = make_inputs(2, 4, 3, 2)[: 3 if with_previous else 2]
    assert torch.autograd.gradcheck(token_shift_mix, [x.requires_grad_() for x in inputs])


def test_mu_0_keeps_and_mu_1_looks_back():
    x, _, _ = make_inputs()
    kept, shifted = token_shift_mix(x, torch.tensor([[0.0] * 5, [1.0] * 5], dtype=x.dtype))
    assert torch.equal(kept, x)
    torch.testing.assert_close(shifted[:, 1:], x[:, :-1])
    assert torch.equal(shifted[:, 0], torch.zeros_like(x[:, 0]))


def test_a_sequence_goes_on_from_an_earlier_part():
    x, mu, _ = make_inputs()
    whole = token_shift_mix(x, mu)
    torch.testing.assert_close(token_shift_mix(x[:, 3:], mu, x[:, 2:-1]), whole[:, :, 3:])


def test_strided_inputs():
    x, mu, previous = make_inputs()
    strided = [y.mT.contiguous().mT for y in (x, mu, previous)]
    assert not strided[0].is_contiguous()
    assert torch.equal(token_shift_mix(*strided), token_shift_mix(x, mu, previous))


def test_length_0():
    x, mu, _ = make_inputs()
    assert token_shift_mix(x[:, :0], mu).shape == (3, 2, 0, 5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(7, 5)}, ValueError, r"`x` must be \[B, T, D\], got \[7, 5\]"),
        ({"mu": torch.zeros(5)}, ValueError, r"`mu` must be \[n, D\], got \[5\]"),
        ({"mu": torch.zeros(3, 1)}, ValueError, r"`mu` must be \[n, D\] .* got \[3, 1\] and \[2, 7, 5\]"),
        ({"mu": torch.zeros(3, 6)}, ValueError, r"`mu` must be \[n, D\] .* got \[3, 6\] and \[2, 7, 5\]"),
        ({"previous": torch.zeros(2, 1, 5)}, ValueError, r"`previous` must .* `x`, got \[2, 1, 5\] and \[2, 7, 5\]"),
        ({"previous": torch.zeros(2, 5)}, ValueError, r"`previous` must be \[B, T, D\], got \[2, 5\]"),
        ({"x": torch.zeros(2, 7, 5, dtype=torch.int32)}, TypeError, "`x` must be a floating .* torch.int32"),
        ({"mu": torch.zeros(3, 5, dtype=torch.bool)}, TypeError, "`mu` must be a floating .* torch.bool"),
        ({"mu": None}, TypeError, "`mu` must be a floating point tensor, got None"),
        ({"mu": torch.zeros(3, 5, device="meta")}, ValueError, f"one device, got {HERE} and, for `mu`, meta"),
    ],
)
def test_errors(change, error, message):
    inputs = {"x": torch.zeros(2, 7, 5), "mu": torch.zeros(3, 5)}
    with pytest.raises(error, match=message):
        token_shift_mix(**inputs | change)
