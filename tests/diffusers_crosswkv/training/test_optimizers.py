import importlib.util
import json

import pytest
import safetensors.torch
import torch
from torch import nn

from diffusers_crosswkv.training.config import LR_SCHEDULERS, TrainingConfig
from diffusers_crosswkv.training.optimizers import (
    ADAM_BETAS,
    OPTIMIZERS,
    Muon,
    load_optimizer_state,
    make_lr_scheduler,
    make_optimizer,
    move_to_step,
    optimizer_state,
    orthogonal,
)

PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}


@pytest.fixture(params=OPTIMIZERS)
def name(request):
    package = PACKAGES.get(request.param)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    return request.param


def config(**settings):
    return TrainingConfig("unused", **{"max_train_steps": 10, "learning_rate": 1e-2, "lr_warmup_steps": 0, **settings})


def decay_of(optimizer):
    return {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}


def test_weight_decay_touches_matrices_alone(make_unet, name):
    model = nn.ModuleDict({"unet": make_unet(), "embedding": nn.Embedding(5, 3)})
    decay = decay_of(make_optimizer(config(optimizer=name), model))
    decay = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert decay.pop("embedding.weight") == 0.01
    decayed = {name for name, value in decay.items() if value == 0.01}
    assert set(decay.values()) == {0.0, 0.01}
    assert all(name.endswith("weight") and "norm" not in name for name in decayed)
    assert any(name.endswith("mix.mu") for name in set(decay) - decayed)


@pytest.mark.parametrize("weights", ["lora", "state"])
def test_adapters_and_states_are_not_decayed(weights):
    decay = decay_of(make_optimizer(config(weights=weights), nn.Linear(3, 3)))
    assert list(decay.values()) == [0.0, 0.0]


def test_what_is_frozen_is_left_out():
    model = nn.Linear(3, 3)
    model.weight.requires_grad_(False)
    assert list(decay_of(make_optimizer(config(), model))) == [id(model.bias)]


@pytest.mark.parametrize(("name", "package"), PACKAGES.items())
def test_a_missing_package_is_named(name, package, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ImportError, match=f"optimizer='{name}'` needs .* pip install {package}"):
        make_optimizer(config(optimizer=name), nn.Linear(2, 2))


def small_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(80, 96), nn.Tanh(), nn.Linear(96, 4))  # the first large enough for 8 bits


def fit(model, optimizer, schedule, steps):
    x = torch.randn(8, 80, generator=torch.Generator().manual_seed(2))
    for _ in range(steps):
        model(x).square().mean().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model(x).square().mean().item()


def test_an_optimizer_goes_on_from_tensors_and_json(name, tmp_path):
    """Four steps, and two, a file, and two more in new objects: the same weights, bit for bit."""
    settings = config(optimizer=name, lr_scheduler="linear", max_train_steps=8)

    def made(model):
        optimizer = make_optimizer(settings, model)
        return optimizer, make_lr_scheduler(settings, optimizer)

    straight = small_model()
    optimizer, schedule = made(straight)
    start = fit(straight, optimizer, schedule, 0)
    assert fit(straight, optimizer, schedule, 4) < start

    model = small_model()
    optimizer, schedule = made(model)
    fit(model, optimizer, schedule, 2)
    tensors, values = optimizer_state(optimizer)
    safetensors.torch.save_file(tensors, tmp_path / "optimizer.safetensors")
    text = json.dumps(values)

    resumed = small_model()
    resumed.load_state_dict(model.state_dict())
    optimizer, schedule = made(resumed)
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    load_optimizer_state(optimizer, safetensors.torch.load_file(tmp_path / "optimizer.safetensors"), json.loads(text))
    move_to_step(schedule, decays, 2)
    fit(resumed, optimizer, schedule, 2)
    for mine, expected in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(mine, expected)


def rates_of(**settings):
    """The learning rate of every step."""
    settings = config(**settings)
    optimizer = make_optimizer(settings, nn.Linear(2, 2))
    lr_scheduler = make_lr_scheduler(settings, optimizer)
    rates = []
    for _ in range(settings.max_train_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        lr_scheduler.step()
    return rates


@pytest.mark.parametrize("schedule", LR_SCHEDULERS)
def test_schedules_warm_up_and_end(schedule):
    rates = rates_of(lr_scheduler=schedule, lr_warmup_steps=2)
    assert max(rates) == 1e-2
    if schedule.startswith("constant"):
        assert rates[-1] == 1e-2
    else:
        assert rates[2] == 1e-2 and rates[-1] < 0.3 * 1e-2 and rates[2:] == sorted(rates[2:], reverse=True)
    assert (rates[0] == 0) == (schedule != "constant")


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


def test_restarts_and_powers():
    cycle = rates_of(lr_scheduler="cosine_with_restarts", lr_num_cycles=3, max_train_steps=12)
    assert cycle[:4] == cycle[4:8] == cycle[8:]
    powers = (rates_of(lr_scheduler="polynomial", lr_power=power, max_train_steps=12) for power in (1.0, 2.0))
    linear, square = map(torch.tensor, powers)
    torch.testing.assert_close(square, linear.square() / 1e-2, rtol=0, atol=1e-6)


def test_warm_up_leaves_something_of_the_run():
    assert TrainingConfig("unused", 5000).lr_warmup_steps == 100
    assert TrainingConfig("unused", 60).lr_warmup_steps == 6
    with pytest.raises(ValueError, match=r"`lr_warmup_steps` must be less than `max_train_steps` \(60\), .* got 60"):
        TrainingConfig("unused", 60, lr_warmup_steps=60)
