"""Arguments of `wkv7`, easy and hard, and an oracle for what it returns."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from crosswkv_kernels import wkv7, wkv7_reference
from generators import seeded

BACKENDS = {"reference": wkv7_reference, "chunked": partial(wkv7, backend="chunked")}  # in plain PyTorch
ERROR_BARS = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 5e-3}


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
    generator = seeded(seed)

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


def run(function, inputs, results=("o", "final_state")):
    """The named results of a function and the gradient of every argument, for random cotangents of the results."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    values = function(**leaves, output_final_state=True)
    generator = seeded(1)
    # numbers that every dtype represents: a cotangent must not be rounded on its way to a 16 bit output
    cotangents = [torch.randn(x.shape, generator=generator).bfloat16().to(x.dtype) for x in values]
    gradients = torch.autograd.grad(values, list(leaves.values()), cotangents, allow_unused=True)
    names = (*results, *(f"d_{name}" for name in leaves))
    return dict(zip(names, (*values, *gradients), strict=True))


def relative_rms(actual, expected, head_axis):
    """RMS of the error over RMS of the expected, of the worst head."""
    assert actual.shape == expected.shape
    rest = [i for i in range(expected.ndim) if i != head_axis]
    error, size = ((x.double() ** 2).mean(rest).sqrt() for x in (actual.double() - expected, expected))
    return (error / size).max().item()


def call(inputs, backend, **kwargs):
    """Output and final state."""
    return wkv7(**inputs, output_final_state=True, backend=backend, **kwargs)


def assert_close(actual, expected):
    """In float64."""
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


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


CHANGES = (
    keep_all,
    forget_fast,
    reflect,
    rates_up_to_2,
    repeat_keys,
    repeat_keys_at_rate_1,
    repeat_tokens,
    stride,
)
