"""`wkv7` and its backends against an oracle that writes every transition out as a matrix, in float64."""

import inspect
from functools import partial

import pytest
import torch
from crosswkv_kernels import wkv7, wkv7_reference
from generators import HERE
from scans import BACKENDS, CHANGES, ERROR_BARS, assert_close, call, make_inputs, oracle, relative_rms, run
from torch.utils._python_dispatch import TorchDispatchMode

DTYPES = pytest.mark.parametrize("dtype", ERROR_BARS, ids=lambda dtype: str(dtype).removeprefix("torch."))
pytestmark = pytest.mark.usefixtures("poisoned_memory")


def assert_accurate(inputs, bar):
    expected = run(oracle, {name: x.double() for name, x in inputs.items()})
    for backend, function in BACKENDS.items():
        actual = run(function, inputs)
        errors = {name: relative_rms(actual[name], x, 1 if "state" in name else 2) for name, x in expected.items()}
        wrong = {name: error for name, error in errors.items() if not error <= bar}
        assert not wrong, f"{backend}: {wrong} above {bar}"


# accuracy


@DTYPES
@pytest.mark.parametrize("size", [(16, 16), (64, 64), (32, 128), (128, 16), (16, 48)], ids=str)
@pytest.mark.parametrize("length", [17, 77])
def test_sizes(length, size, dtype):
    assert_accurate(make_inputs(length, *size, dtype=dtype), ERROR_BARS[dtype])


@DTYPES
@pytest.mark.parametrize("length", [1, 15, 16, 63, 64, 65, 200])
def test_lengths(length, dtype):
    assert_accurate(make_inputs(length, 32, 48, dtype=dtype), ERROR_BARS[dtype])


@pytest.mark.parametrize(("length", "dtype"), [(1000, torch.bfloat16), (2048, torch.float32)], ids=str)
def test_long(length, dtype):
    assert_accurate(make_inputs(length, 16, 16, batch=1, dtype=dtype), ERROR_BARS[dtype])


@DTYPES
@pytest.mark.parametrize("length", [77, 200])
@pytest.mark.parametrize(
    "change",
    CHANGES,
    ids=lambda change: change.__name__,
)
def test_extremes(change, length, dtype):
    inputs = make_inputs(length, 32, 16, dtype=dtype)
    assert_accurate(inputs | change(inputs), ERROR_BARS[dtype])


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_autocast_stays_outside(backend):
    inputs = make_inputs(77, dtype=torch.float32)
    expected, state = oracle(**{name: x.double() for name, x in inputs.items()})
    with torch.autocast(HERE.type, torch.bfloat16):
        o, final_state = wkv7(**inputs, output_final_state=True, backend=backend)
    assert relative_rms(o, expected, 2) <= 1e-5
    assert relative_rms(final_state, state, 1) <= 1e-5


@pytest.mark.parametrize(("length", "fast"), [(1, False), (5, False), (67, True)])
def test_gradcheck(length, fast):
    inputs = [x.requires_grad_() for x in make_inputs(length, 2, 3, heads=2, batch=1).values()]

    def function(*args):
        return wkv7(*args[:-1], initial_state=args[-1], output_final_state=True, backend="chunked")

    assert torch.autograd.gradcheck(function, inputs, fast_mode=fast)


@pytest.mark.parametrize("backend", ["reference", "chunked", "triton"])
@pytest.mark.parametrize("names", [("w", "a"), ("w",), ("a",), ("k",), ("w", "k", "a")], ids=str)
@pytest.mark.parametrize("reads", [True, False])
def test_one_number_for_a_head(reads, names, backend):
    inputs = make_inputs(77, 16, 24, dtype=torch.float32)
    inputs |= {name: inputs[name][..., :1].clone() for name in names}
    if not reads:
        inputs["r"] = None
    shape = inputs["k"].shape

    def function(scan, **x):
        if scan is wkv7_reference:
            x |= {name: x[name] * (x["kappa"] if name == "k" else torch.ones(shape)) for name in names}
        return scan(**x, output_final_state=True)

    actual = run_all(partial(function, partial(wkv7, backend=backend)), inputs)
    expected = run_all(
        partial(function, wkv7_reference), {name: x if x is None else x.double() for name, x in inputs.items()}
    )
    for x, y in zip(actual, expected, strict=True):
        assert x.shape == y.shape
        assert (x.double() - y).norm() <= 1e-5 * y.norm()


def run_all(function, inputs):
    """Outputs that are there and all gradients."""
    leaves = {name: x if x is None else x.detach().requires_grad_() for name, x in inputs.items()}
    results = [x for x in function(**leaves) if x is not None]
    cotangents = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view(x.shape) for x in results]
    return [*results, *torch.autograd.grad(results, [x for x in leaves.values() if x is not None], cotangents)]


# behaviour


def test_a_unit_key_at_rate_1_replaces_its_value():
    first, second = torch.eye(2)
    zero, x, y, z = torch.zeros(2), torch.tensor([3.0, 1.0, 4.0]), torch.tensor([1.0, 5.0, 9.0]), torch.zeros(3)
    key = torch.stack((first, second, first, zero))[None, :, None]
    value = torch.stack((x, y, z, z))[None, :, None]
    receptance = torch.stack((first, first, first, second))[None, :, None]
    for function in BACKENDS.values():
        o, _ = function(receptance, torch.zeros_like(key), key, value, key, torch.ones_like(key))
        torch.testing.assert_close(o[0, :, 0], torch.stack((x, x, z, y)))


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_without_an_initial_state_it_is_zero(backend):
    inputs = make_inputs(70)
    zeros = torch.zeros_like(inputs.pop("initial_state"))
    for actual, expected in zip(call(inputs, backend), oracle(**inputs, initial_state=zeros), strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("backend", ["chunked", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_length_0(backend, dtype):
    inputs = make_inputs(0, 16, 32, dtype=dtype)
    o, state = call(inputs, backend)
    assert o.shape == (2, 0, 3, 32)
    assert o.dtype == dtype
    torch.testing.assert_close(state, inputs["initial_state"].float(), rtol=0, atol=0)
    start = inputs.pop("initial_state")
    _, state = call(inputs | {"r": None}, backend)
    torch.testing.assert_close(state, torch.zeros_like(start).float(), rtol=0, atol=0)


@pytest.mark.parametrize(("mode", "backend"), [("recurrent", "reference"), ("auto", "chunked"), ("chunk", "chunked")])
def test_mode_and_backend_choose(mode, backend):
    inputs = make_inputs(70)
    expected = BACKENDS[backend](**inputs)[0]
    assert torch.equal(wkv7(**inputs, mode=mode, backend=backend)[0], expected)


@pytest.mark.parametrize("mode", ["auto", "chunk", "recurrent"])
def test_auto_finds_a_backend(mode):
    inputs = make_inputs(70)
    assert_close(call(inputs, "auto", mode=mode), call(inputs, "reference"))


def test_reference_has_the_same_arguments():
    ours, reference = (inspect.signature(function).parameters for function in (wkv7, wkv7_reference))
    assert [*ours] == [*reference, "mode", "backend"]


class CountOps(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **kwargs or {})


def test_chunked_has_no_loop_over_tokens():
    def ops(length):
        inputs = make_inputs(length, heads=1)
        with CountOps() as counter:
            call(inputs, "chunked")
        return counter.count

    one_chunk, two_chunks, three_chunks, thirty_two_chunks = (ops(length) for length in (64, 128, 192, 2048))
    assert ops(16) == one_chunk
    assert ops(80) == two_chunks
    assert three_chunks - two_chunks == two_chunks - one_chunk < 20
    assert thirty_two_chunks == one_chunk + 31 * (two_chunks - one_chunk)


# errors


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mode": "fused"}, ValueError, "`mode` must be one of auto, chunk, recurrent, got 'fused'"),
        ({"backend": "cuda"}, ValueError, "`backend` must be one of auto, triton, chunked, reference, got 'cuda'"),
        ({"mode": "recurrent", "backend": "chunked"}, ValueError, "`backend='chunked'` has no mode 'recurrent'"),
        ({"mode": "chunk", "backend": "reference"}, ValueError, "`backend='reference'` has no mode 'chunk'"),
        *(
            ({name: torch.zeros(2, 5, 3, 17)}, ValueError, rf"`{name}` must .*\[B, T, H, K\].* got \[2, 5, 3, 17\]")
            for name in ("r", "w", "k", "a")
        ),
        ({"kappa": torch.zeros(2, 5, 3, 17)}, ValueError, r"of `kappa`, got \[2, 5, 3, 16\] and \[2, 5, 3, 17\]"),
        ({"k": torch.zeros(2, 5, 16)}, ValueError, r"`k` must be \[B, T, H, K\], got \[2, 5, 16\]"),
        ({"v": torch.zeros(2, 5, 48)}, ValueError, r"`v` must be \[B, T, H, V\], got \[2, 5, 48\]"),
        ({"v": torch.zeros(2, 5, 4, 32)}, ValueError, r"`v` must be \[B, T, H, V\] .* got \[2, 5, 4, 32\]"),
        ({"initial_state": torch.zeros(2, 3, 16, 32)}, ValueError, r"= \[2, 3, 32, 16\], got .* transpose"),
        ({"initial_state": torch.zeros(3, 32, 16)}, ValueError, r"`initial_state` must be .* got \[3, 32, 16\]"),
        *(
            ({name: torch.zeros(2, 5, 3, 16).long()}, TypeError, f"`{name}` must be a floating .* torch.int64")
            for name in make_inputs(1)
        ),
        ({"k": None}, TypeError, "`k` must be a floating point tensor, got None"),
        ({"v": [1.0]}, TypeError, "`v` must be a floating point tensor, got list"),
        ({"a": torch.zeros(2, 5, 3, 16, device="meta")}, ValueError, f"one device, got {HERE} and, for `a`, meta"),
    ],
)
def test_errors(change, error, message):
    inputs = make_inputs(5, 16, 32, dtype=torch.float32)
    with pytest.raises(error, match=message):
        wkv7(**inputs | change)
