"""What the fused operators have in common: registration, transformations of PyTorch, backends."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from crosswkv_kernels import backends, scan_readout, state_readout, state_writes, token_shift_mix
from crosswkv_kernels.specimens import elementwise_specimens
from generators import HERE
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("poisoned_memory")
B, T, H, K, V = 2, 5, 2, 16, 24


def randn(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype)


def mix(dtype=torch.float32):
    return token_shift_mix, {"x": randn(B, T, H * K, dtype=dtype), "mu": randn(2, H * K)}


def mix_previous(dtype=torch.float32):
    return token_shift_mix, mix(dtype)[1] | {"previous": randn(B, T, H * K, dtype=dtype)}


def writes(dtype=torch.float32):
    inputs = {name: randn(B, T, H * K, dtype=dtype) for name in ("decay", "rate", "key")}
    inputs |= {"value": randn(B, T, H * V, dtype=dtype), "k_k": randn(H * K), "k_a": randn(H * K)}
    return state_writes, inputs | {"num_heads": H}


def writes_masked(dtype=torch.float32):
    return state_writes, writes(dtype)[1] | {"mask": torch.rand(B, T) > 0.3, "feature_map": "silu"}


def writes_residual(dtype=torch.float32):
    values = {name: randn(B, T, H * V, dtype=dtype) for name in ("first_value", "value_share")}
    return state_writes, writes_masked(dtype)[1] | values


def writes_products(dtype=torch.float32):
    inputs = writes_residual(dtype)[1] | {name: randn(B, T, H, dtype=dtype) for name in ("decay", "rate")}
    key = randn(B, T, H * K // 4, dtype=dtype)
    return state_writes, inputs | {"key": key, "k_k": None, "k_a": randn(H), "feature_map": "quadratic"}


def read(dtype=torch.float32):
    inputs = {"r": randn(B, T, H, K, dtype=dtype), "state": randn(B, H, V, K), "gate": randn(B, T, H * V, dtype=dtype)}
    return state_readout, inputs | {"norm_weight": randn(H * V), "norm_bias": randn(H * V)}


def read_plain(dtype=torch.float32):
    return state_readout, read(dtype)[1] | {"norm_weight": None, "norm_bias": None, "gate": None}


def read_products(dtype=torch.float32):
    inputs = read(dtype)[1] | {"r": randn(B, T, H, K // 4, dtype=dtype), "gate": None}
    return state_readout, inputs | {"feature_map": "quadratic"}


def scan(dtype=torch.float32):
    inputs = {"o": randn(B, T - 2, H, V, dtype=dtype), "r": randn(B, T - 2, H, K, dtype=dtype)}
    inputs |= {"k": randn(B, T - 2, H, K), "v": randn(B, T - 2, H, V, dtype=dtype), "r_k": randn(H, K)}
    inputs |= {"gate": randn(B, T, H * V, dtype=dtype), "norm_weight": randn(H * V), "norm_bias": randn(H * V)}
    return scan_readout, inputs


def scan_plain(dtype=torch.float32):
    return scan_readout, scan(dtype)[1] | {"norm_weight": None, "norm_bias": None}


PRODUCTS = (writes_products, read_products)
ALL = (mix, mix_previous, writes, writes_masked, writes_residual, read, read_plain, scan, scan_plain, *PRODUCTS)
WHOLE = (mix_previous, writes_residual, read, scan, *PRODUCTS)  # every part is there
CASES = pytest.mark.parametrize("case", ALL, ids=lambda case: case.__name__)
ONE_OF_EACH = pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.__name__)
BOTH = pytest.mark.parametrize("backend", ["triton", "chunked"])


def is_leaf(x):
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def leaves_of(inputs):
    return {name: x.clone().requires_grad_() if is_leaf(x) else x for name, x in inputs.items()}


def joined(results):
    """One number that depends on every result."""
    results = results if isinstance(results, tuple) else (results,)
    return sum((x.float() * torch.linspace(-1, 1, x.numel()).view(x.shape)).sum() for x in results)


def results_and_gradients(function, inputs):
    leaves = leaves_of(inputs)
    results = function(**leaves)
    gradients = torch.autograd.grad(joined(results), [x for x in leaves.values() if is_leaf(x)])
    return [*(results if isinstance(results, tuple) else (results,)), *gradients]


def assert_same(actual, expected, **tolerance):
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, **tolerance)


class RecordOperators(torch.utils._python_dispatch.TorchDispatchMode):
    """The calls of our operators: their names and arguments."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "crosswkv":
            self.calls.append((func, args))
        return func(*args, **kwargs or {})


@CASES
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch 2.14's opcheck
def test_operators_are_registered_rightly(case):
    function, inputs = case(torch.bfloat16)
    leaves = leaves_of(inputs)
    with RecordOperators() as recorded:
        joined(function(**leaves, backend="triton")).backward()
    (forward, forward_args), (backward, backward_args) = recorded.calls
    leaves = [x.detach().requires_grad_() if is_leaf(x) else x for x in forward_args]
    cheap = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(forward, leaves, test_utils="ALL" if case in WHOLE else cheap)
    leaves = [x.detach().requires_grad_() if is_leaf(x) else x for x in backward_args]
    torch.library.opcheck(backward, leaves, test_utils=cheap)
    if case in WHOLE:
        constants = [x.detach() if is_leaf(x) else x for x in backward_args]
        torch.library.opcheck(backward, constants, test_utils="test_aot_dispatch_dynamic")
    assert backward.name() == forward.name() + "_backward"


@CASES
def test_the_backends_agree(case):
    function, inputs = case()
    triton, chunked, auto = (
        results_and_gradients(partial(function, backend=backend), inputs) for backend in ("triton", "chunked", "auto")
    )
    assert_same(triton, chunked, rtol=1e-4, atol=1e-5)
    assert_same(auto, chunked if HERE.type == "cpu" else triton, rtol=0, atol=0)


@ONE_OF_EACH
@BOTH
def test_compile(case, backend):
    function, inputs = case()

    def around(**x):
        results = function(**x, backend=backend)
        return tuple(2 * y for y in results) if isinstance(results, tuple) else 2 * results

    compiled = torch.compile(around, fullgraph=True, backend="aot_eager")
    assert_same(results_and_gradients(compiled, inputs), results_and_gradients(around, inputs), rtol=1e-5, atol=1e-5)
    torch.compiler.reset()


@ONE_OF_EACH
@BOTH
def test_export(case, backend):
    function, inputs = case()
    constants = {name: x for name, x in inputs.items() if not isinstance(x, torch.Tensor)}
    tensors = {name: x for name, x in inputs.items() if isinstance(x, torch.Tensor)}

    class Module(torch.nn.Module):
        def forward(self, **x):
            return function(**x, **constants, backend=backend)

    program = torch.export.export(Module(), (), tensors)
    expected = function(**inputs, backend=backend)
    actual = program.module()(**tensors)
    # a CPU reads in blocks where nothing is traced
    other_order = backend == "chunked" and case in (read, read_products) and HERE.type == "cpu"
    assert_same(
        actual if isinstance(expected, tuple) else (actual,),
        expected if isinstance(expected, tuple) else (expected,),
        rtol=0,
        atol=1e-5 * other_order,
    )
    assert ("crosswkv" in str(program.graph)) == (backend == "triton")


@ONE_OF_EACH
@BOTH
def test_autocast_stays_outside(case, backend):
    function, inputs = case()

    def under_autocast(**x):
        with torch.autocast(HERE.type, torch.bfloat16):
            return function(**x, backend=backend)

    plain = results_and_gradients(partial(function, backend=backend), inputs)
    assert_same(results_and_gradients(under_autocast, inputs), plain, rtol=0, atol=0)


@ONE_OF_EACH
@BOTH
def test_checkpointing(case, backend):
    function, inputs = case()

    def again(**x):
        return checkpoint(lambda: function(**x, backend=backend), use_reentrant=False)

    plain = results_and_gradients(partial(function, backend=backend), inputs)
    assert_same(results_and_gradients(again, inputs), plain, rtol=0, atol=0)


@CASES
def test_a_gradient_of_a_gradient_raises(case):
    function, inputs = case()
    leaves = leaves_of(inputs)
    floats = [x for x in leaves.values() if is_leaf(x)]
    gradients = torch.autograd.grad(joined(function(**leaves, backend="triton")) ** 2, floats, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        torch.autograd.grad(sum(x.sum() for x in gradients), floats)


@CASES
@BOTH
def test_no_tokens(case, backend):
    function, inputs = case()
    per_token = {"x", "previous", "decay", "rate", "key", "value", "first_value", "value_share", "mask"}
    per_token |= {"r", "gate", "o", "k", "v"}
    inputs = {name: x[:, :0] if name in per_token and x is not None else x for name, x in inputs.items()}
    for x in results_and_gradients(partial(function, backend=backend), inputs):
        assert torch.equal(x, torch.zeros_like(x))


@CASES
def test_only_some_inputs_need_a_gradient(case):
    function, inputs = case()
    leaves = leaves_of(inputs)
    floats = [name for name, x in inputs.items() if is_leaf(x)]
    together = torch.autograd.grad(joined(function(**leaves, backend="triton")), [leaves[name] for name in floats])
    for name, gradient in zip(floats, together, strict=True):
        leaves = inputs | {name: inputs[name].clone().requires_grad_()}
        (alone,) = torch.autograd.grad(joined(function(**leaves, backend="triton")), leaves[name])
        assert torch.equal(alone, gradient), name


# errors


@ONE_OF_EACH
def test_backends_that_cannot_run(case, monkeypatch):
    function, inputs = case()
    with pytest.raises(ValueError, match="`backend` must be one of auto, triton, chunked, got 'reference'"):
        function(**inputs, backend="reference")
    doubles = {name: x.double() if is_leaf(x) else x for name, x in inputs.items()}
    with pytest.raises(RuntimeError, match=r"float32, bfloat16 and float16, got torch.float64: convert"):
        function(**doubles, backend="triton")
    monkeypatch.setattr(backends.triton_launch, "INTERPRETED", False)
    monkeypatch.setattr(backends.triton_launch, "DEVICES", ())
    with pytest.raises(RuntimeError, match=f"do not run on the device '{HERE}': .* TRITON_INTERPRET=1"):
        function(**inputs, backend="triton")
    monkeypatch.setattr(backends, "triton_launch", None)
    with pytest.raises(RuntimeError, match="triton cannot be imported: install it"):
        function(**inputs, backend="triton")
    function(**inputs)


@pytest.mark.parametrize("case", [writes, read, scan], ids=lambda case: case.__name__)
def test_heads_too_wide(case, monkeypatch):
    monkeypatch.setattr(backends, "WIDEST_HEAD", 23)
    function, inputs = case()
    with pytest.raises(RuntimeError, match="heads of at most 23 channels, got 24"):
        function(**inputs, backend="triton")
    function(**inputs)


def test_importing_works_without_triton():
    code = "import sys; sys.modules['triton'] = None; import crosswkv_kernels as c, torch; x = torch.ones(1, 2, 3)"
    code += "; print(c.token_shift_mix(x, x[0]).shape)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "torch.Size([2, 1, 2, 3])\n"


# ahead of time


def test_specimens_are_recorded():
    with pytest.raises(RuntimeError, match=r"Nothing records launches here; .* `with record_launches"):
        elementwise_specimens()
