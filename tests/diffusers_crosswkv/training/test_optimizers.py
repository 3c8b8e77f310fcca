import pytest
import torch
from torch import nn

from diffusers_crosswkv.training.optimizers import ADAM_BETAS, OPTIMIZERS, Muon, make_optimizer, orthogonal


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_touches_matrices_alone(make_unet, name):
    unet = make_unet()
    optimizer = make_optimizer(name, [unet, nn.Embedding(5, 3)], 1e-3, 0.01)
    names = {id(p): name for name, p in unet.named_parameters()}
    decay = {names.get(id(p), "embedding"): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert len(decay) == len(names) + 1
    assert decay.pop("embedding") == 0.01
    decayed = {name for name, value in decay.items() if value == 0.01}
    assert set(decay.values()) == {0.0, 0.01}
    assert all(name.endswith("weight") and "norm" not in name for name in decayed)
    assert any(name.endswith("mix.mu") for name in set(decay) - decayed)


@pytest.mark.parametrize("shape", [(5, 5), (6, 20), (20, 6), (1, 7)])
def test_orthogonal_keeps_the_singular_vectors(shape):
    torch.manual_seed(0)
    x = torch.randn(shape)
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    inside = left.mT @ orthogonal(x) @ right.mT
    assert (inside - torch.diag(inside.diagonal())).abs().max() < 1e-4
    assert 0.5 < inside.diagonal().min() <= inside.diagonal().max() < 1.3


def trained(make_optimizer, shape, steps=20):
    """A parameter after `steps` steps towards a fixed target."""
    torch.manual_seed(1)
    parameter, target = nn.Parameter(torch.randn(shape)), torch.randn(shape)
    optimizer = make_optimizer(parameter)
    for _ in range(steps):
        optimizer.zero_grad()
        (parameter - target).square().sum().backward()
        optimizer.step()
    return parameter.detach()


def test_matrices_take_the_steps_of_muon():
    mine = trained(lambda p: Muon([{"params": [p], "matrices": True}], 0.02, 0.1), (12, 8))
    theirs = trained(lambda p: torch.optim.Muon([p], 0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"), (12, 8))
    moved = trained(lambda p: torch.optim.SGD([p], 0.0), (12, 8)) - mine
    assert (mine - theirs).norm() < 0.01 * moved.norm()  # theirs iterates in bfloat16


def test_the_rest_takes_the_steps_of_adamw():
    mine = trained(lambda p: Muon([{"params": [p]}], 0.02, 0.1), (12,))
    theirs = trained(lambda p: torch.optim.AdamW([p], 0.02, betas=ADAM_BETAS, weight_decay=0.1), (12,))
    torch.testing.assert_close(mine, theirs)
