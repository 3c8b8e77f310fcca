"""torch.compile and torch.export of the whole U-Net, and of its repeated blocks."""

import pytest
import torch
from unets import read, relative_error, unet_inputs

COMPILE_NOISE = ["ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"]


@pytest.fixture(autouse=True)
def clean():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@torch.no_grad()
def test_repeated_blocks_share_their_code(make_unet):
    """Blocks of one width and number of tokens are compiled once, wherever they are, as in a stock U-Net."""
    unet, inputs = make_unet(block_out_channels=(16, 16)), unet_inputs()
    expected, state = unet(*inputs).sample, unet.encode_prompt(inputs[2])
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    unet.compile_repeated_blocks(fullgraph=True, backend=count)
    assert relative_error(unet(*inputs).sample, expected) < 1e-6
    assert (len(unet._crosswkv_attentions), len(graphs)) == (7, 2)
    assert relative_error(read(unet, inputs, state), expected) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["state", *(pytest.param(x, marks=pytest.mark.full) for x in ("prefix", "paper"))])
def test_export(make_unet, fusion):
    unet, inputs = make_unet(crosswkv_fusion=fusion), unet_inputs()
    expected = unet(*inputs).sample
    program = torch.export.export(unet, inputs, strict=False)
    assert relative_error(program.module()(*inputs).sample, expected) < 1e-5  # both are 1e-6 away from float64


@torch.no_grad()
@pytest.mark.full
@pytest.mark.filterwarnings(*COMPILE_NOISE)
def test_inductor(make_unet):
    """Compiled to machine code, whole graph, text and prompt state; one level, for compiling takes long."""
    level = {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
    unet, inputs = make_unet(block_out_channels=(16,), mid_block_type=None, **level), unet_inputs()
    expected, state = unet(*inputs).sample, unet.encode_prompt(inputs[2])
    compiled = torch.compile(unet, fullgraph=True)
    assert relative_error(compiled(*inputs).sample, expected) < 1e-5
    assert relative_error(read(compiled, inputs, state), expected) < 1e-5
