"""`wkv7` on Triton, in the interpreter or on a GPU, against the oracle in float64: results and every gradient."""

from functools import partial

import pytest
import torch
from crosswkv_kernels import wkv7, wkv7_operators
from crosswkv_kernels.triton_launch import record_launches
from generators import HERE
from interpreter import use_tensor_cores
from scans import CHANGES, ERROR_BARS, make_inputs, oracle, reflect, relative_rms, repeat_keys, repeat_tokens, run
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("poisoned_memory")
BARS = {dtype: bar for dtype, bar in ERROR_BARS.items() if dtype != torch.float64}
DTYPES = pytest.mark.parametrize("dtype", BARS, ids=lambda dtype: str(dtype).removeprefix("torch."))
ALL_CHANGES = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
SIZES = [(16, 16), (64, 64), (32, 128), (128, 16), (16, 48), (24, 40)]
triton = partial(wkv7, backend="triton")


def assert_accurate(inputs, bar, **options):
    expected = run(oracle, {name: x.double() for name, x in inputs.items()})
    actual = run(partial(triton, **options), inputs)
    errors = {name: relative_rms(actual[name], x, 1 if "state" in name else 2) for name, x in expected.items()}
    wrong = {name: error for name, error in errors.items() if not error <= bar}
    assert not wrong, f"{wrong} above {bar}"


@pytest.fixture
def in_segments(monkeypatch):
    """A sequence is cut into 3 parts, however short it is."""
    monkeypatch.setattr(wkv7_operators, "number_of_segments", lambda sizes: 3)


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size, mode):
    assert_accurate(make_inputs(21, *size, batch=1, dtype=torch.float32), BARS[torch.float32], mode=mode)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 63, 77])
def test_lengths(length):
    assert_accurate(make_inputs(length, batch=1, dtype=torch.float32), BARS[torch.float32], mode="chunk")


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype, mode):
    assert_accurate(make_inputs(33, 32, 16, dtype=dtype), BARS[dtype], mode=mode)


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
@ALL_CHANGES
def test_extremes(change, mode):
    inputs = make_inputs(50 if mode == "chunk" else 20, 16, 24, dtype=torch.float32)
    assert_accurate(inputs | change(inputs), BARS[torch.float32], mode=mode)


@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("change", [lambda x: {}, *CHANGES], ids=lambda change: change.__name__)
def test_products_of_tensor_cores(change, dtype, monkeypatch):
    use_tensor_cores(monkeypatch)
    inputs = make_inputs(40, 32, 16, batch=1, dtype=dtype)
    assert_accurate(inputs | change(inputs), BARS[dtype], mode="chunk")


@pytest.mark.skipif(HERE.type != "cpu", reason="a GPU multiplies as it does")
def test_products_of_tensor_cores_are_not_exact(monkeypatch):
    """What the test above changes can be seen."""
    inputs = make_inputs(40, 32, 16, batch=1, dtype=torch.bfloat16)
    exact = triton(**inputs, mode="chunk", output_final_state=True)[1]
    use_tensor_cores(monkeypatch)
    assert 1e-5 < relative_rms(triton(**inputs, mode="chunk", output_final_state=True)[1], exact, 1) < 1e-2


@pytest.mark.parametrize("length", [33, 77, 95])
def test_segments(length, in_segments):
    assert_accurate(make_inputs(length, 16, 48, batch=1, dtype=torch.float32), BARS[torch.float32], mode="chunk")


def assert_accurate_in_segments(change, dtype):
    inputs = make_inputs(77, 16, 16, batch=1, dtype=dtype)
    cancels = change is repeat_tokens and dtype != torch.float32  # the gradient of the rate does, nearly
    assert_accurate(inputs | change(inputs), BARS[dtype] * (2 if cancels else 1), mode="chunk")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("change", [reflect, repeat_keys], ids=lambda change: change.__name__)
def test_extremes_in_segments(change, dtype, in_segments, monkeypatch):
    use_tensor_cores(monkeypatch)
    assert_accurate_in_segments(change, dtype)


@pytest.mark.parametrize("size", [(64, 64), (16, 48)], ids=str)
def test_values_that_are_not_split(size, monkeypatch):
    """As with many heads: 64 of them in one program."""
    use_tensor_cores(monkeypatch)
    monkeypatch.setattr(wkv7_operators, "ENOUGH_PROGRAMS", 1)
    inputs = make_inputs(35, *size, batch=1, dtype=torch.bfloat16)
    with record_launches("nvidia") as recorder:
        triton(**inputs, mode="chunk")
    assert recorder.launches[0].constants["BV"] == 64
    assert_accurate(inputs, BARS[torch.bfloat16], mode="chunk")


@pytest.mark.parametrize("segments", [1, 3])
def test_offsets_of_64_bits(segments, monkeypatch):
    monkeypatch.setattr(wkv7_operators, "number_of_segments", lambda sizes: segments)
    constants = wkv7_operators.chunk_constants
    monkeypatch.setattr(wkv7_operators, "chunk_constants", lambda *x: constants(*x) | {"WIDE": True})
    assert_accurate(make_inputs(77, 16, 24, batch=1, dtype=torch.float32), BARS[torch.float32], mode="chunk")


@pytest.mark.parametrize(
    ("shape", "segments"),
    [((2, 77, 200, 64, 64), 1), ((1, 4096, 5, 64, 64), 16), ((2, 4096, 5, 64, 64), 16), ((2, 1024, 10, 64, 64), 4)],
)
def test_few_heads_and_many_tokens_are_cut(shape, segments):
    sizes = wkv7_operators.Sizes(*shape)
    assert wkv7_operators.number_of_segments(sizes) == segments
    per_segment = wkv7_operators.ceil_div(sizes.chunks, segments)
    assert per_segment * (segments - 1) < sizes.chunks <= per_segment * segments  # none is empty


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_without_receptance_and_state(mode):
    inputs = make_inputs(21, batch=1, dtype=torch.float32)
    zeros = torch.zeros_like(inputs.pop("initial_state"))
    o, state = oracle(**{name: x.double() for name, x in inputs.items()}, initial_state=zeros.double())
    nothing, alone = triton(**inputs | {"r": None}, mode=mode)
    read, no_state = triton(**inputs, mode=mode)
    assert nothing is None and no_state is None
    assert relative_rms(alone, state, 1) <= 1e-5
    assert relative_rms(read, o, 2) <= 1e-5


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("results", ["o", "final_state"])
def test_gradients_of_one_result_alone(results, asked, mode):
    """The other one is made and left, or not made at all."""
    inputs = make_inputs(21, batch=1, dtype=torch.float32)
    place = slice(0, 1) if results == "o" else slice(1, 2)
    expected = run(lambda **x: oracle(**x)[place], {name: x.double() for name, x in inputs.items()}, (results,))
    unasked = {} if asked else {"output_final_state": False} if results == "o" else {"r": None}
    actual = run(lambda **x: triton(**x | unasked, mode=mode)[place], inputs, (results,))
    for name in set(expected) - ({"d_r"} if results == "final_state" else set()):
        assert relative_rms(actual[name], expected[name], 1 if "state" in name else 2) <= 1e-5, name


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_length_0(mode):
    inputs = make_inputs(0, 16, 32, dtype=torch.float32)
    o, state = triton(**inputs, output_final_state=True, mode=mode)
    assert o.shape == (2, 0, 3, 32)
    torch.testing.assert_close(state, inputs["initial_state"])


def test_dtypes_may_differ():
    """As under autocast: decay, rate and removal key in float32."""
    inputs = make_inputs(20, dtype=torch.float32)
    inputs |= {name: inputs[name].bfloat16() for name in ("r", "v")}
    assert_accurate(inputs, BARS[torch.bfloat16], mode="chunk")
    o, state = triton(**inputs, output_final_state=True)
    assert (o.dtype, state.dtype) == (torch.bfloat16, torch.float32)


def test_auto_goes_token_by_token_for_inference_on_short_texts(monkeypatch):
    calls = []
    monkeypatch.setattr(wkv7_operators, "wkv7_triton", lambda *args, recurrent, **kwargs: calls.append(recurrent))
    for length in (64, 65):
        inputs = make_inputs(length, batch=1, dtype=torch.float32)
        triton(**inputs)
        triton(**inputs | {"k": inputs["k"].requires_grad_()})
    assert calls == [True, False, False, False]


def test_a_step_of_one_token_updates_the_state():
    inputs = make_inputs(5, batch=1, dtype=torch.float32)
    state = inputs.pop("initial_state")
    o, expected = triton(**inputs, initial_state=state, output_final_state=True, mode="chunk")
    for t in range(5):
        token = {name: x[:, t : t + 1] for name, x in inputs.items()}
        step, state = triton(**token, initial_state=state, output_final_state=True, mode="recurrent")
        torch.testing.assert_close(step, o[:, t : t + 1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-5)


# transformations of PyTorch


def operator_arguments(**change):
    """Tensors that ask for a gradient, or None."""
    inputs = make_inputs(20, batch=1, heads=2, dtype=torch.float32)
    return [x if x is None else x.detach().requires_grad_() for x in (inputs | change).values()]


def one_number(name):
    return make_inputs(20, batch=1, heads=2, dtype=torch.float32)[name][..., :1]


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({}, (True, 1, True)),
        ({}, (False, 2, True)),
        ({"r": None, "initial_state": None}, (True, 2, True)),
        ({name: one_number(name) for name in ("w", "k", "a")}, (True, 1, True)),
    ],
    ids=["all", "segments", "state alone", "one number for a head"],
)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch 2.14's opcheck
def test_operators_are_registered_rightly(change, options):
    cheap = ("test_schema", "test_autograd_registration", "test_faketensor")
    checks = "ALL" if options[1] == 1 else cheap
    arguments = operator_arguments(**change)
    torch.library.opcheck(wkv7_operators.wkv7_operator, (*arguments, *options), test_utils=checks)
    torch.library.opcheck(wkv7_operators.wkv7_recurrent_operator, (*arguments, options[0]), test_utils=checks)
    arguments = [x if x is None else x.detach() for x in arguments]
    o, state, *kept = wkv7_operators.wkv7_operator(*arguments, *options)
    given = [(o, state), (o, None), (None, state)]
    given = [x for x in given if all(y is None or y.numel() for y in x)]
    for d_o, d_state in given:
        cotangents = (x if x is None else torch.ones_like(x) for x in (d_o, d_state))
        gradients = (*cotangents, *arguments[:-1], *kept, options[1])
        torch.library.opcheck(wkv7_operators.wkv7_backward_operator, gradients, test_utils=checks)


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_a_state_that_nobody_asks_for_is_not_written(mode):
    inputs = make_inputs(20, batch=1, heads=2, dtype=torch.float32)
    with record_launches("nvidia") as recorder:
        assert triton(**inputs, mode=mode)[1] is None
    (launch,) = recorder.launches
    assert launch.constants["p_final"] is None


@pytest.mark.parametrize("reads", [True, False])
def test_a_text_takes_one_launch_forward_and_one_backward(reads):
    inputs = make_inputs(77, 64, 64, dtype=torch.float32)
    leaves = {name: x.requires_grad_() for name, x in inputs.items()} | ({} if reads else {"r": None})
    with record_launches("nvidia") as recorder:
        o, state = triton(**leaves, output_final_state=not reads)
        (o if reads else state).sum().backward()
    names = [launch.kernel.__name__ for launch in recorder.launches]
    assert names == ["wkv7_forward_kernel", "wkv7_backward_kernel"]


def total(*args):
    o, state = wkv7(*args[:-1], initial_state=args[-1], output_final_state=True, mode="chunk", backend="triton")
    return o.square().sum() + state.square().sum()


@pytest.mark.parametrize("change", ["compile", "checkpoint", "autocast"])
def test_the_same_inside(change):
    arguments = operator_arguments()
    changed = {
        "compile": torch.compile(total, fullgraph=True, backend="aot_eager"),
        "checkpoint": lambda *args: checkpoint(total, *args, use_reentrant=False),
        "autocast": torch.autocast(arguments[0].device.type, torch.bfloat16)(total),
    }[change]
    expected, actual = ([f(*arguments), *torch.autograd.grad(f(*arguments), arguments)] for f in (total, changed))
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y)


class Scan(torch.nn.Module):
    def forward(self, *args):
        return triton(*args)[0]


def test_export():
    arguments = tuple(x.detach() for x in operator_arguments())[:-1]
    program = torch.export.export(Scan(), arguments)
    torch.testing.assert_close(program.module()(*arguments), triton(*arguments, mode="chunk")[0])


def test_export_for_any_length():
    arguments = tuple(x.detach() for x in operator_arguments())[:-1]
    length = torch.export.Dim("length", min=2, max=4096)
    program = torch.export.export(Scan(), arguments, dynamic_shapes={"args": tuple({1: length} for _ in arguments)})
    longer = tuple(x.detach() for x in make_inputs(77, batch=1, heads=2, dtype=torch.float32).values())[:-1]
    torch.testing.assert_close(program.module()(*longer), triton(*longer, mode="chunk")[0])


def test_a_gradient_of_what_kept_nothing_is_refused():
    """A program that was exported without gradients."""
    arguments = operator_arguments()
    o, *_ = wkv7_operators.wkv7_operator(*arguments, False, 1, False)
    with pytest.raises(RuntimeError, match="needs the states of its forward"):
        o.sum().backward()


def test_gradients_of_gradients_are_refused():
    arguments = operator_arguments()
    gradients = torch.autograd.grad(total(*arguments), arguments, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        torch.autograd.grad(sum(x.sum() for x in gradients), arguments)


# errors


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (make_inputs(5), r"`backend='triton'` was asked for, but .* got torch.float64: convert"),
        (make_inputs(5, 144, 16, dtype=torch.float32), "heads of at most 128 channels, got 144"),
    ],
    ids=["float64", "wide"],
)
def test_what_triton_cannot_take(inputs, message):
    with pytest.raises(RuntimeError, match=message):
        triton(**inputs)
    wkv7(**inputs)


# everything


@pytest.mark.full
@DTYPES
@pytest.mark.parametrize("size", [*SIZES, (128, 128)], ids=str)
@pytest.mark.parametrize("length", [17, 77])
def test_all_sizes(length, size, dtype):
    assert_accurate(make_inputs(length, *size, dtype=dtype), BARS[dtype], mode="chunk")


@pytest.mark.full
@DTYPES
@ALL_CHANGES
@pytest.mark.parametrize("size", [(32, 16), (64, 64)], ids=str)
def test_all_extremes(change, size, dtype):
    inputs = make_inputs(77, *size, dtype=dtype)
    assert_accurate(inputs | change(inputs), BARS[dtype], mode="chunk")


@pytest.mark.full
@DTYPES
@pytest.mark.parametrize("length", [1000, 2048])
def test_long(length, dtype):
    assert_accurate(make_inputs(length, 16, 16, batch=1, dtype=dtype), BARS[dtype], mode="chunk")


@pytest.mark.full
@DTYPES
@ALL_CHANGES
def test_all_extremes_in_segments(change, dtype, in_segments, monkeypatch):
    use_tensor_cores(monkeypatch)
    assert_accurate_in_segments(change, dtype)


@pytest.mark.full
@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("change", [reflect, repeat_keys], ids=lambda change: change.__name__)
def test_long_products_of_tensor_cores(change, segments, monkeypatch):
    use_tensor_cores(monkeypatch)
    monkeypatch.setattr(wkv7_operators, "number_of_segments", lambda sizes: segments)
    inputs = make_inputs(1000, 16, 16, batch=1, dtype=torch.bfloat16)
    assert_accurate(inputs | change(inputs), BARS[torch.bfloat16], mode="chunk")
