"""The U-Net on the Triton kernels, which a GPU gets by itself, beside the same on plain PyTorch."""

import pytest
import torch
from crosswkv_kernels import backends, interface
from torch.utils._python_dispatch import TorchDispatchMode
from unets import relative_error, unet_inputs

ONE_LEVEL = {
    "block_out_channels": (16,),
    "down_block_types": ["CrossAttnDownBlock2D"],
    "mid_block_type": None,
    "up_block_types": ["CrossAttnUpBlock2D"],
}


def small(fusion="state"):
    """Few heads, for each takes a program of the interpreter."""
    return ONE_LEVEL | {"crosswkv_fusion": fusion, "crosswkv_head_dim": 32 if fusion == "state" else 16}


def few_inputs(length=5):
    return unet_inputs(batch_size=1, size=4, length=length)


@pytest.fixture
def take_triton(monkeypatch):
    """From then on `auto` is Triton on a CPU too, in the interpreter."""

    def take():
        decide = backends.takes_triton

        def decide_as_on_a_gpu(backend, *arguments):
            return decide("triton" if backend == "auto" else backend, *arguments)

        for module in (backends, interface):
            monkeypatch.setattr(module, "takes_triton", decide_as_on_a_gpu)

    return take


class RecordCalls(TorchDispatchMode):
    """Of our operators: their names and arguments."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "crosswkv":
            self.calls.append((func.name().removeprefix("crosswkv::"), args))
        return func(*args, **kwargs or {})

    @property
    def names(self):
        return {name for name, _ in self.calls}


def prediction_and_gradients(unet, inputs):
    unet.zero_grad()
    sample = unet(*inputs).sample
    (sample * torch.linspace(-1, 1, sample.numel()).view(sample.shape)).sum().backward()
    return sample, {name: x.grad for name, x in unet.named_parameters() if x.grad is not None}


def test_the_same_as_in_plain_pytorch(make_unet, fusion, take_triton):
    unet, inputs = make_unet(**small(fusion)), few_inputs()
    expected, expected_gradients = prediction_and_gradients(unet, inputs)
    take_triton()
    with RecordCalls() as recorded:
        actual, gradients = prediction_and_gradients(unet, inputs)
    readout = "state_readout" if fusion == "state" else "scan_readout"
    operators = {"token_shift_mix", "state_writes", "wkv7", readout}
    assert recorded.names == operators | {f"{name}_backward" for name in operators}
    assert relative_error(actual, expected) <= 1e-5
    assert gradients.keys() == expected_gradients.keys()
    errors = {name: relative_error(gradients[name], x) for name, x in expected_gradients.items()}
    assert {name: error for name, error in errors.items() if error > 1e-4} == {}


@torch.no_grad()
@pytest.mark.parametrize(("length", "scan"), [(5, "wkv7_recurrent"), (77, "wkv7")])
def test_one_scan_serves_all_layers(make_unet, take_triton, length, scan):
    """A prompt state that a longer text may continue has one more of each layer: of what it passes on."""
    unet, inputs = make_unet(**small()), few_inputs(length)
    layers = [attn.crosswkv for attn in unet._crosswkv_attentions]
    heads = sum(layer.num_heads for layer in layers)
    take_triton()
    with RecordCalls() as recorded:
        unet(*inputs)
    assert heads_scanned(recorded, scan) == [heads]
    with RecordCalls() as recorded:
        unet.encode_prompt(inputs[2])
    assert heads_scanned(recorded, scan) == [*(layer.backward_heads for layer in layers), heads]


def heads_scanned(recorded, scan):
    scans = [(name, args) for name, args in recorded.calls if name.startswith("wkv7")]
    assert {name for name, _ in scans} == {scan}
    return [args[4].shape[2] for _, args in scans]


def test_compiled(make_unet, take_triton):
    unet, inputs = make_unet(**small()), few_inputs()
    take_triton()
    expected, expected_gradients = prediction_and_gradients(unet, inputs)
    unet.compile(fullgraph=True, backend="aot_eager")
    actual, gradients = prediction_and_gradients(unet, inputs)
    torch.compiler.reset()
    assert relative_error(actual, expected) <= 1e-5
    errors = {name: relative_error(gradients[name], x) for name, x in expected_gradients.items()}
    assert {name: error for name, error in errors.items() if error > 1e-4} == {}


@torch.no_grad()
def test_exported(make_unet, take_triton):
    unet, inputs = make_unet(**small()), few_inputs()
    take_triton()
    expected = unet(*inputs).sample
    program = torch.export.export(unet, inputs, strict=False)
    graphs = [str(part.graph) for part in program.graph_module.modules() if hasattr(part, "graph")]
    assert any("crosswkv.wkv7" in graph for graph in graphs)
    assert relative_error(program.module()(*inputs).sample, expected) <= 1e-5
