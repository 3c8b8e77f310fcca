"""`wkv7` and its backends against an oracle that writes every transition out as a matrix, in float64."""

import inspect
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from crosswkv_kernels import wkv7, wkv7_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

BACKENDS = {"reference": wkv7_reference, "chunked": partial(wkv7, backend="chunked")}
ERROR_BARS = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 5e-3}
DTYPES = pytest.mark.parametrize("dtype", ERROR_BARS, ids=lambda dtype: str(dtype).removeprefix("torch."))
properties = settings(max_examples=20, deadline=None)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """`torch.empty` is filled with NaN: what a backend forgets to write is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def oracle(r, w, k, v, kappa, a, initial_state, output_final_state=True):
    """S_t = S_{t-1} (diag(exp w_t) - kappa_t^T (a_t * kappa_t)) + v_t^T k_t and o_t = S_t r_t, word for word."""
    S, outputs = initial_state, []
    for t in range(k.shape[1]):
        decay = torch.diag_embed(w[:, t].exp())
        erase = torch.einsum("bhi,bhj->bhij", kappa[:, t], a[:, t] * kappa[:, t])
        S = torch.einsum("bhvi,bhij->bhvj", S, decay - erase) + torch.einsum("bhv,bhk->bhvk", v[:, t], k[:, t])
        outputs.append(torch.einsum("bhvk,bhk->bhv", S, r[:, t]))
    return torch.stack(outputs, dim=1), S


def make_inputs(length, K=16, V=16, *, heads=3, batch=2, dtype=torch.float64, seed=0):
    """Random arguments of `wkv7`; the heads range from one that keeps nearly all to one that forgets fast."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    shape = (batch, length, heads, K)
    speed = torch.linspace(-4, 4, heads, dtype=torch.float64)[:, None]
    inputs = {
        "r": randn(*shape),
        "w": -math.exp(-0.5) * torch.sigmoid(randn(*shape) + speed),
        "k": randn(*shape) / K**0.5,
        "v": randn(batch, length, heads, V),
        "kappa": F.normalize(randn(*shape), dim=-1),
        "a": torch.sigmoid(randn(*shape)),
        "initial_state": randn(batch, heads, V, K),
    }
    return {name: x.to(dtype) for name, x in inputs.items()}


def run(function, inputs):
    """Output, final state and the gradient of every argument, for random cotangents of both results."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    results = function(**leaves, output_final_state=True)
    generator = torch.Generator().manual_seed(1)
    # numbers that every dtype represents: a cotangent must not be rounded on its way to a 16 bit output
    cotangents = [torch.randn(x.shape, generator=generator).bfloat16().to(x.dtype) for x in results]
    gradients = torch.autograd.grad(results, list(leaves.values()), cotangents)
    names = ("o", "final_state", *(f"d_{name}" for name in leaves))
    return dict(zip(names, (*results, *gradients), strict=True))


def relative_rms(actual, expected, head_axis):
    """RMS of the error over RMS of the expected, of the worst head."""
    assert actual.shape == expected.shape
    rest = [i for i in range(expected.ndim) if i != head_axis]
    error, size = ((x.double() ** 2).mean(rest).sqrt() for x in (actual.double() - expected, expected))
    return (error / size).max().item()


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


def keep_all(x):
    return {"w": 0 * x["w"]}


def forget_fast(x):
    return {"w": torch.full_like(x["w"], -0.6065)}


def reflect(x):
    """Rate 2: the transitions are Householder reflections, of eigenvalue -1."""
    return {"w": 0 * x["w"], "a": torch.full_like(x["a"], 2)}


def rates_up_to_2(x):
    return {"w": x["w"] / 64, "a": 1 + x["a"]}


def repeat_keys(x):
    """Every token writes and removes under one key, as padding and flat image regions do."""
    key = F.normalize(x["k"][:, :1], dim=-1).expand_as(x["k"])
    return {"w": 0 * x["w"], "k": key, "kappa": key}


def repeat_keys_at_rate_1(x):
    return repeat_keys(x) | {"a": torch.ones_like(x["a"])}


def repeat_tokens(x):
    return {name: x[name][:, :1].expand_as(x[name]) for name in ("w", "k", "v", "kappa", "a")}


def stride(x):
    """Other orders in memory, and NaN between the numbers."""
    views = {}
    for name, tensor in x.items():
        gaps = torch.full((*tensor.permute(1, 3, 0, 2).shape, 2), torch.nan, dtype=tensor.dtype)
        views[name] = gaps[..., 1].permute(2, 0, 3, 1).copy_(tensor)
    return views


@DTYPES
@pytest.mark.parametrize("length", [77, 200])
@pytest.mark.parametrize(
    "change",
    [keep_all, forget_fast, reflect, rates_up_to_2, repeat_keys, repeat_keys_at_rate_1, repeat_tokens, stride],
    ids=lambda change: change.__name__,
)
def test_extremes(change, length, dtype):
    inputs = make_inputs(length, 32, 16, dtype=dtype)
    assert_accurate(inputs | change(inputs), ERROR_BARS[dtype])


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_autocast_stays_outside(backend):
    inputs = make_inputs(77, dtype=torch.float32)
    expected, state = oracle(**{name: x.double() for name, x in inputs.items()})
    with torch.autocast("cpu", torch.bfloat16):
        o, final_state = wkv7(**inputs, output_final_state=True, backend=backend)
    assert relative_rms(o, expected, 2) <= 1e-5
    assert relative_rms(final_state, state, 1) <= 1e-5


@pytest.mark.parametrize(("length", "fast"), [(1, False), (5, False), (67, True)])
def test_gradcheck(length, fast):
    inputs = [x.requires_grad_() for x in make_inputs(length, 2, 3, heads=2, batch=1).values()]

    def function(*args):
        return wkv7(*args[:-1], initial_state=args[-1], output_final_state=True, backend="chunked")

    assert torch.autograd.gradcheck(function, inputs, fast_mode=fast)


# properties


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


def call(inputs, backend, **kwargs):
    return wkv7(**inputs, output_final_state=True, backend=backend, **kwargs)


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
        ({"backend": "triton"}, RuntimeError, "`backend='triton'` was asked for"),
        ({"mode": "recurrent", "backend": "chunked"}, ValueError, "`backend='chunked'` has no mode 'recurrent'"),
        ({"mode": "chunk", "backend": "reference"}, ValueError, "`backend='reference'` has no mode 'chunk'"),
        *(
            ({name: torch.zeros(2, 5, 3, 17)}, ValueError, rf"`{name}` must .*\[B, T, H, K\].* got \[2, 5, 3, 17\]")
            for name in ("r", "w", "kappa", "a")
        ),
        ({"k": torch.zeros(2, 5, 3, 17)}, ValueError, r"\[B, T, H, K\] of `k`, got .* and \[2, 5, 3, 17\]"),
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
        ({"a": torch.zeros(2, 5, 3, 16, device="meta")}, ValueError, "one device, got cpu and, for `a`, meta"),
    ],
)
def test_errors(change, error, message):
    inputs = make_inputs(5, 16, 32, dtype=torch.float32)
    with pytest.raises(error, match=message):
        wkv7(**inputs | change)
