"""What holds for every scan, whatever its sizes: arguments drawn by Hypothesis, in float64."""

import pytest
import torch
from crosswkv_kernels import wkv7
from scans import BACKENDS, ERROR_BARS, assert_close, call, make_inputs, oracle, relative_rms, run

pytest.importorskip("hypothesis", reason="the arguments are drawn by Hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

properties = settings(max_examples=20, deadline=None)
pytestmark = pytest.mark.usefixtures("poisoned_memory")


def tokens(inputs, index):
    return {name: x[:, index] for name, x in inputs.items() if name != "initial_state"}


cases = st.builds(
    make_inputs,
    length=st.integers(1, 150),
    K=st.sampled_from([4, 7]),
    V=st.sampled_from([3, 7]),
    heads=st.integers(1, 4),
    batch=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
backends = st.sampled_from(["chunked", "reference"])


@properties
@given(cases, backends, st.floats(0, 1))
def test_a_sequence_may_be_split_anywhere(inputs, backend, where):
    length = inputs["k"].shape[1]
    place = round(where * length)
    o, final_state = call(inputs, backend)
    head, state = call(tokens(inputs, slice(place)) | {"initial_state": inputs["initial_state"]}, backend)
    tail, state = call(tokens(inputs, slice(place, length)) | {"initial_state": state}, backend)
    assert_close(torch.cat((head, tail), dim=1), o)
    assert_close(state, final_state)


@properties
@given(cases, backends, st.data())
def test_tokens_of_zeros_do_nothing(inputs, backend, data):
    length = inputs["k"].shape[1]
    extra = data.draw(st.integers(1, 80))
    places = sorted(data.draw(st.permutations(range(length + extra)))[:length])
    longer = make_inputs(length + extra, *inputs["initial_state"].shape[:1:-1], heads=inputs["k"].shape[2], seed=7)
    longer = {name: x[: len(inputs["k"])] for name, x in longer.items()} | {"initial_state": inputs["initial_state"]}
    for name in ("w", "k", "v", "kappa"):
        longer[name] = torch.zeros_like(longer[name])
    for name, x in tokens(inputs, slice(None)).items():
        longer[name][:, places] = x
    o, final_state = call(inputs, backend)
    longer_o, longer_state = call(longer, backend)
    assert_close(longer_o[:, places], o)
    assert_close(longer_state, final_state)


@properties
@given(cases, backends, st.randoms(use_true_random=False))
def test_heads_are_independent(inputs, backend, random):
    order = list(range(inputs["k"].shape[2]))
    random.shuffle(order)
    o, final_state = call(inputs, backend)
    permuted = {name: x[:, order] if name == "initial_state" else x[:, :, order] for name, x in inputs.items()}
    permuted_o, permuted_state = call(permuted, backend)
    assert_close(permuted_o, o[:, :, order])
    assert_close(permuted_state, final_state[:, order])


@properties
@given(cases, backends)
def test_without_receptance_the_state_alone(inputs, backend):
    _, final_state = call(inputs, backend)
    for output_final_state in (True, False):
        o, state = wkv7(**inputs | {"r": None}, output_final_state=output_final_state, backend=backend)
        assert o is None
        assert_close(state, final_state)
    o, state = wkv7(**inputs, backend=backend)
    assert state is None
    assert o.shape == inputs["v"].shape


@properties
@given(cases, backends, st.floats(-2, 2), st.floats(-2, 2))
def test_linear_in_value_and_initial_state(inputs, backend, x, y):
    other = {name: inputs[name].flip(0, 1) + 1 for name in ("v", "initial_state")}
    mixed = {name: x * inputs[name] + y * other[name] for name in other}
    results = [call(inputs | change, backend) for change in ({}, other, mixed)]
    for first, second, both in zip(*results, strict=True):
        assert_close(both, x * first + y * second)


@properties
@given(st.lists(st.sampled_from(list(ERROR_BARS)), min_size=7, max_size=7), backends)
def test_dtypes_may_differ(dtypes, backend):
    inputs = make_inputs(20)
    inputs = {name: x.to(dtype) for (name, x), dtype in zip(inputs.items(), dtypes, strict=True)}
    expected = run(oracle, {name: x.double() for name, x in inputs.items()})
    actual = run(BACKENDS[backend], inputs)
    assert actual["o"].dtype == inputs["v"].dtype
    assert actual["final_state"].dtype == (torch.float64 if torch.float64 in dtypes else torch.float32)
    for name, x in expected.items():
        bar = max(ERROR_BARS[actual[name].dtype], 1e-5)
        assert relative_rms(actual[name], x, 1 if "state" in name else 2) <= bar, name
