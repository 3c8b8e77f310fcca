"""A projection with tokens last in memory is the projection."""

import pytest
import torch
from crosswkv_kernels import state_readout
from torch import nn

from diffusers_crosswkv import CrossWKV
from diffusers_crosswkv.models.cpu_inference import project_tokens_last


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def with_forward():
    linear = nn.Linear(6, 8, bias=False)
    forward = linear.forward
    linear.forward = lambda x: 2 * forward(x)  # as Accelerate's hooks do
    return linear


@torch.no_grad()
def test_neither_the_projection_nor_what_reads_it_is_copied():
    """Weights want gradients, as those of any loaded model."""
    linear, x = nn.Linear(8, 8, bias=False), torch.randn(2, 5, 8)
    with torch.profiler.profile(acc_events=True) as profile:
        y = project_tokens_last(linear, x)
    assert y.stride() == (5, 1, 26)
    assert torch.allclose(y, linear(x), rtol=0, atol=1e-6)
    state, weight = torch.randn(2, 2, 4, 16), torch.ones(8)
    for overwrite in (False, True):
        r = y.unflatten(-1, (2, 4))
        seen = state_readout(r, state, weight, weight, feature_map="quadratic", overwrite_r=overwrite)
        with torch.profiler.profile(acc_events=True) as of_next:
            linear(seen)
        names = {event.key for event in (*profile.key_averages(), *of_next.key_averages())}
        assert "aten::mm" in names
        assert not names & {"aten::copy_", "aten::clone"}


@torch.no_grad()
@pytest.mark.parametrize("before", [False, True])
def test_hooks_are_called(before):
    layer, calls = CrossWKV(16, 12, 16).eval(), []
    register = layer.to_q.register_forward_pre_hook if before else layer.to_q.register_forward_hook
    register(lambda module, *_: calls.append(module))
    layer(torch.randn(2, 5, 16), torch.randn(2, 3, 12))
    assert calls == [layer.to_q]


@torch.no_grad()
def test_what_a_hook_keeps_stays_as_it_was():
    layer, kept = CrossWKV(16, 12, 16).eval(), []
    layer.to_q.register_forward_hook(lambda module, inputs, output: kept.append((output, output.clone())))
    layer(torch.randn(2, 5, 16), torch.randn(2, 3, 12))
    ((output, as_it_was),) = kept
    assert torch.equal(output, as_it_was)


@torch.no_grad()
@pytest.mark.parametrize(
    "linear",
    [nn.Linear(6, 8), Doubled(6, 8, bias=False), nn.Sequential(nn.Linear(6, 8, bias=False)), with_forward()],
    ids=["bias", "subclass", "other module", "replaced forward"],
)
def test_whatever_does_more_must_be_called(linear):
    assert project_tokens_last(linear, torch.randn(2, 5, 6)) is None


def test_with_gradients_modules_are_called():
    linear, x = nn.Linear(6, 8, bias=False), torch.randn(2, 5, 6)
    assert project_tokens_last(linear, x) is None
    with torch.no_grad():
        assert project_tokens_last(linear, x) is not None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert project_tokens_last(linear, x) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_of_what_is_read(dtype):
    layer = CrossWKV(32, 12).eval()
    image, text = torch.randn(2, 9, 32), torch.randn(2, 5, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = layer(image, text).detach()
        with torch.no_grad():
            actual = layer(image, text)
    assert actual.dtype == expected.dtype
    assert torch.allclose(actual, expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-2)
