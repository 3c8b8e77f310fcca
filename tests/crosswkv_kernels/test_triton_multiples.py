"""The state alone of one decay, rate and direction of keys per head on Triton, against the oracle in float64."""

from functools import partial

import pytest
import torch
from crosswkv_kernels import wkv7, wkv7_operators
from crosswkv_kernels.triton_launch import record_launches
from interpreter import use_tensor_cores
from scans import CHANGES, ERROR_BARS, keep_all, make_inputs, oracle, relative_rms, repeat_keys_at_rate_1, run

pytestmark = pytest.mark.usefixtures("poisoned_memory")
BARS = {dtype: bar for dtype, bar in ERROR_BARS.items() if dtype != torch.float64}
NAMES = ("w", "k", "v", "kappa", "a", "initial_state")


def multiples(length, K=16, V=16, change=lambda x: {}, **options):
    inputs = make_inputs(length, K, V, **options)
    inputs |= change(inputs)
    inputs["k"] = 1 + inputs["k"]  # a multiple of kappa
    inputs["initial_state"] = inputs["initial_state"].float()  # its gradient may decay to less than 16 bits can hold
    return {name: inputs[name][..., :1] if name in ("w", "k", "a") else inputs[name] for name in NAMES}


def expected_state(w, k, v, kappa, a, initial_state, output_final_state):
    w, a = w.expand_as(kappa), a.expand_as(kappa)
    return (oracle(torch.zeros_like(kappa), w, k * kappa, v, kappa, a, initial_state)[1],)


def triton_state(output_final_state, **inputs):
    return (wkv7(None, **inputs, mode="chunk", backend="triton")[1],)


def assert_accurate(inputs, bar, left_out=frozenset()):
    expected = run(expected_state, {name: x.double() for name, x in inputs.items()}, ("final_state",))
    with record_launches("nvidia") as recorder:
        run(triton_state, inputs, ("final_state",))
    names = [launch.kernel.__name__ for launch in recorder.launches]
    inverses = "multiples_inverses_kernel"
    assert names == [inverses, "multiples_forward_kernel", inverses, "multiples_backward_kernel"]
    actual = run(triton_state, inputs, ("final_state",))
    errors = {name: relative_rms(actual[name], x, 1 if "state" in name else 2) for name, x in expected.items()}
    wrong = {name: error for name, error in errors.items() if name not in left_out and not error <= bar}
    assert not wrong, f"{wrong} above {bar}"


@pytest.mark.parametrize("size", [(16, 16), (64, 16), (64, 64), (32, 8), (24, 40), (128, 128)], ids=str)
def test_sizes(size):
    assert_accurate(multiples(21, *size, batch=1, dtype=torch.float32), 1e-5)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 63, 77])
def test_lengths(length):
    assert_accurate(multiples(length, 64, batch=1, dtype=torch.float32), 1e-5)


@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("change", [lambda x: {}, *CHANGES], ids=lambda change: change.__name__)
def test_products_of_tensor_cores(change, dtype, monkeypatch):
    use_tensor_cores(monkeypatch)
    assert_accurate(multiples(40, 32, 16, change, batch=1, dtype=dtype), bar_of(change, dtype))


def bar_of(change, dtype):
    """Where each token replaces the one before it, all but the last rate's gradients cancel: to 1e-4 in float32."""
    return max(BARS[dtype], 1e-4 if change is repeat_keys_at_rate_1 else 0)


@pytest.mark.full
@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("change", [lambda x: {}, *CHANGES], ids=lambda change: change.__name__)
@pytest.mark.parametrize("size", [(64, 16), (128, 128)], ids=str)
def test_grid(size, change, dtype, monkeypatch):
    use_tensor_cores(monkeypatch)
    assert_accurate(multiples(77, *size, change, batch=1, dtype=dtype), bar_of(change, dtype))


@pytest.mark.full
@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("change", [lambda x: {}, keep_all], ids=["forget", "keep"])
def test_long(change, dtype, monkeypatch):
    """As with many heads, which are not cut into segments. What is forgotten leaves the first state no gradient."""
    use_tensor_cores(monkeypatch)
    monkeypatch.setattr(wkv7_operators, "number_of_segments", lambda sizes: 1)
    left_out = set() if change is keep_all else {"d_initial_state"}
    assert_accurate(multiples(1000, 64, 16, change, batch=1, dtype=dtype), BARS[dtype], left_out)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_what_state_writes_returns(dtype, monkeypatch):
    """All but the values are float32; keys are rounded to what tensor cores take, once."""
    use_tensor_cores(monkeypatch)
    inputs = multiples(40, 32, 16, batch=1, dtype=torch.float32)
    inputs["v"] = inputs["v"].to(dtype)
    (expected,) = expected_state(**{name: x.double() for name, x in inputs.items()}, output_final_state=True)
    assert relative_rms(triton_state(True, **inputs)[0], expected, 1) <= 5e-4
    assert_accurate(inputs, BARS[dtype])


def test_output_and_gradients_of_the_state_alone():
    """The forward is the general one, which has read; its backward is not."""
    inputs = multiples(21, batch=1, dtype=torch.float32)
    r = torch.zeros_like(inputs["kappa"])
    expected = run(expected_state, {name: x.double() for name, x in inputs.items()}, ("final_state",))
    actual = run(lambda **x: wkv7(r, **x, mode="chunk", backend="triton")[1:], inputs, ("final_state",))
    for name, x in expected.items():
        assert relative_rms(actual[name], x, 1 if "state" in name else 2) <= 1e-5, name


def test_length_0():
    inputs = multiples(0, 16, 32, dtype=torch.float32)
    torch.testing.assert_close(triton_state(True, **inputs)[0], inputs["initial_state"])


def test_offsets_of_64_bits(monkeypatch):
    constants = wkv7_operators.chunk_constants
    monkeypatch.setattr(wkv7_operators, "chunk_constants", lambda *x: constants(*x) | {"WIDE": True})
    assert_accurate(multiples(40, 16, 24, batch=1, dtype=torch.float32), 1e-5)


def test_without_a_state_to_start_from():
    inputs = multiples(21, batch=1, dtype=torch.float32) | {"initial_state": None}
    expected = wkv7(None, **{name: x if x is None else x.double() for name, x in inputs.items()})[1]
    assert relative_rms(wkv7(None, **inputs, mode="chunk", backend="triton")[1], expected, 1) <= 1e-5


@pytest.mark.parametrize("segments", [1, 3])
def test_in_segments_the_general_kernels_do_it(segments, monkeypatch):
    monkeypatch.setattr(wkv7_operators, "number_of_segments", lambda sizes: segments)
    monkeypatch.setattr(wkv7_operators, "FEWEST_OF_MULTIPLES", 1)
    inputs = multiples(77, batch=1, dtype=torch.float32)
    (expected,) = expected_state(**{name: x.double() for name, x in inputs.items()}, output_final_state=True)
    assert relative_rms(triton_state(True, **inputs)[0], expected, 1) <= 1e-5


@pytest.mark.parametrize("change", ["compile", "autocast"])
def test_the_same_inside(change):
    inputs = [x.requires_grad_() for x in multiples(20, batch=1, dtype=torch.float32).values()]

    def total(*args):
        return wkv7(None, *args[:-1], initial_state=args[-1], mode="chunk", backend="triton")[1].square().sum()

    changed = {
        "compile": torch.compile(total, fullgraph=True, backend="aot_eager"),
        "autocast": torch.autocast(inputs[0].device.type, torch.bfloat16)(total),
    }[change]
    expected, actual = ([f(*inputs), *torch.autograd.grad(f(*inputs), inputs)] for f in (total, changed))
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y)


opcheck = partial(torch.library.opcheck, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch 2.14's opcheck
def test_operators_are_registered_rightly():
    inputs = [x.requires_grad_() for x in multiples(20, batch=1, dtype=torch.float32).values()]
    opcheck(wkv7_operators.wkv7_operator, (None, *inputs, True, 1, True))
    inputs = [x.detach() for x in inputs]
    _, state, *kept = wkv7_operators.wkv7_operator(None, *inputs, True, 1, True)
    opcheck(wkv7_operators.wkv7_backward_operator, (None, torch.ones_like(state), None, *inputs[:-1], *kept, 1))
