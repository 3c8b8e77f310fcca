"""What the feature map `quadratic` promises, in plain PyTorch; the operators' own tests have it in Triton."""

import pytest
import torch
from crosswkv_kernels import map_features


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 16])
def test_products_in_a_circle(channels):
    x = torch.randn(2, 3, channels, dtype=torch.float64)
    features = map_features(x, "quadratic").unflatten(-1, (4, channels))
    mean_square = (x**2).sum(-1) / channels + 1e-4
    for j in range(4):
        for i in range(channels):
            product = x[..., i] * x[..., (i + j) % channels] * (2**0.5 if j else 1) / channels**0.5
            assert torch.allclose(features[..., j, i], product / mean_square, rtol=1e-14, atol=0)


def test_all_products_of_two_channels_make_a_squared_cosine():
    """With heads of three channels no product of two is left out; with more, the most distant ones are."""
    q, k = 100 * torch.randn(2, 5, 3, dtype=torch.float64)
    pairs = (map_features(q, "quadratic") * map_features(k, "quadratic")).unflatten(-1, (4, 3)).sum(-1)
    square = pairs[:, 0] + (pairs[:, 1] + pairs[:, 2]) / 2  # itself, the next, the next but one, itself again
    assert torch.allclose(square, 3 * torch.cosine_similarity(q, k, dim=-1) ** 2, rtol=1e-3)


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_gradients_of_gradients(channels):
    x = torch.randn(2, channels, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: map_features(x, "quadratic"), x)
    assert torch.autograd.gradgradcheck(lambda x: map_features(x, "quadratic"), x)


def test_unknown_map():
    with pytest.raises(ValueError, match="`feature_map` must be one of identity, silu, quadratic, got 'relu'"):
        map_features(torch.zeros(2), "relu")


def test_size_does_not_count_and_zero_is_zero():
    x = torch.randn(5, 16, dtype=torch.float64)
    torch.testing.assert_close(map_features(100 * x, "quadratic"), map_features(x, "quadratic"), rtol=1e-2, atol=0)
    assert not map_features(0 * x, "quadratic").any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_each_product_is_rounded_once(dtype):
    x = torch.randn(50, 16).to(dtype)
    features = map_features(x, "quadratic")
    assert features.dtype == dtype
    torch.testing.assert_close(
        features.double(), map_features(x.double(), "quadratic"), rtol=torch.finfo(dtype).eps, atol=1e-7
    )


def test_compiled():
    x = torch.randn(7, 6, requires_grad=True)
    compiled = torch.compile(lambda x: map_features(x, "quadratic"), fullgraph=True, backend="aot_eager")
    cotangent = torch.randn(7, 24)
    for run in (compiled, lambda x: map_features(x, "quadratic")):
        y = run(x)
        torch.testing.assert_close(y, map_features(x.detach(), "quadratic"))
        (gradient,) = torch.autograd.grad(y, x, cotangent)
        torch.testing.assert_close(gradient, torch.autograd.grad(map_features(x, "quadratic"), x, cotangent)[0])
