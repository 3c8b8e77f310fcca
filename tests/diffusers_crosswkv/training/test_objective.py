import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from diffusers_crosswkv.training.config import TrainingConfig
from diffusers_crosswkv.training.objective import MAX_SAMPLE_WEIGHT, Draw, Objective

TIMES = torch.tensor([0, 10, 500, 999])
ABAR = torch.cumprod(1 - torch.linspace(0.0001, 0.02, 1000), 0)[TIMES]
SNR = ABAR / (1 - ABAR)
SAMPLES, NOISE = torch.randn(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
ZERO_SNR = {"rescale_betas_zero_snr": True}


def objective(prediction_type="epsilon", schedule=None, **settings):
    if prediction_type == "flow":
        scheduler = FlowMatchEulerDiscreteScheduler(**(schedule or {}))
    else:
        scheduler = DDPMScheduler(prediction_type=prediction_type, **(schedule or {}))
    return Objective(scheduler, TrainingConfig("unused", 10, **settings))


def draws(prediction_type):
    return Draw(NOISE, TIMES.float() if prediction_type == "flow" else TIMES)


def column(x):
    return x.view(4, 1, 1, 1)


def test_noise_and_targets_are_those_of_the_formulas():
    """x_t = sqrt(abar) x + sqrt(1 - abar) n; v = sqrt(abar) n - sqrt(1 - abar) x; flow: x_t = (1 - s) x + s n."""
    alpha, sigma, share = column(ABAR.sqrt()), column((1 - ABAR).sqrt()), column(TIMES / 1000)
    mixed, velocity = alpha * SAMPLES + sigma * NOISE, alpha * NOISE - sigma * SAMPLES
    expected = {
        "epsilon": (mixed, NOISE),
        "v_prediction": (mixed, velocity),
        "sample": (mixed, SAMPLES),
        "flow": ((1 - share) * SAMPLES + share * NOISE, NOISE - SAMPLES),
    }
    for prediction_type, (noisy, target) in expected.items():
        found = objective(prediction_type)
        torch.testing.assert_close(found.noisy(SAMPLES, draws(prediction_type)), noisy, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.target(SAMPLES, draws(prediction_type)), target, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample", "flow"])
def test_a_perfect_prediction_costs_nothing_and_gives_the_image(prediction_type):
    """The image that each target stands for, solved from x_t and the target alone, is the image."""
    found, draw = objective(prediction_type), draws(prediction_type)
    noisy, target = found.noisy(SAMPLES, draw), found.target(SAMPLES, draw)
    assert torch.equal(found.per_sample(target, SAMPLES, draw), torch.zeros(4))
    assert (found.per_sample(target + 0.5, SAMPLES, draw) > 0).all()
    alpha, sigma = found.scales(draw.times)
    recovered = {
        "epsilon": lambda: (noisy - sigma * target) / alpha,
        "v_prediction": lambda: alpha * noisy - sigma * target,
        "sample": lambda: target,
        "flow": lambda: noisy - sigma * target,
    }[prediction_type]()
    torch.testing.assert_close(recovered, SAMPLES, rtol=1e-3, atol=1e-4)


def test_losses_are_float32_whatever_the_prediction_is_in():
    found, draw = objective(), draws("epsilon")
    loss = found.per_sample((NOISE + 0.5).bfloat16(), SAMPLES, draw)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.full((4,), 0.25), rtol=1e-2, atol=0)
    assert found.noisy(SAMPLES.bfloat16(), draw).dtype == torch.float32


def test_the_schedule_is_that_of_its_scheduler():
    """Also one whose own `add_noise` is of another form: betas decide."""
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    theirs = DDPMScheduler(**schedule).add_noise(SAMPLES, NOISE, TIMES)
    config = TrainingConfig("unused", 10)
    for scheduler in (DDPMScheduler(**schedule), DDIMScheduler(**schedule)):
        torch.testing.assert_close(Objective(scheduler, config).noisy(SAMPLES, Draw(NOISE, TIMES)), theirs)


@pytest.mark.parametrize("gamma", [5.0, 1.0])
def test_min_snr_weights_are_those_of_the_paper(gamma):
    """Hang et al., section 3.4: of the image min(SNR, g), of the noise / SNR, of v / (SNR + 1)."""
    limited = SNR.clamp(max=gamma)
    expected = {"sample": limited, "epsilon": limited / SNR, "v_prediction": limited / (SNR + 1)}
    for prediction_type, weights in expected.items():
        found = objective(prediction_type, min_snr_gamma=gamma)
        torch.testing.assert_close(found.weights(TIMES), weights, rtol=1e-4, atol=0)
        loss = found.per_sample(found.target(SAMPLES, draws("")) + 0.5, SAMPLES, draws(""))
        torch.testing.assert_close(loss, 0.25 * weights, rtol=1e-3, atol=0)
    assert SNR[0] > 5 and SNR[3] < 1


def test_min_snr_weights_by_hand():
    """At SNR 20 and gamma 5: 5, a quarter, 5 / 21; at SNR 2: 2, 1, 2 / 3."""
    for prediction_type, weights in {
        "sample": [5.0, 2],
        "epsilon": [0.25, 1],
        "v_prediction": [5 / 21, 2 / 3],
    }.items():
        found = objective(prediction_type, min_snr_gamma=5.0)
        found.alphas_cumprod = torch.tensor([20 / 21, 2 / 3])
        torch.testing.assert_close(found.weights(torch.tensor([0, 1])), torch.tensor(weights), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("prediction_type", "at_nothing", "at_image"),
    [("epsilon", 1.0, 0.0), ("v_prediction", 0.0, 0.0), ("sample", 0.0, 5.0)],
)
def test_weights_are_finite_at_an_snr_of_zero_and_infinity(prediction_type, at_nothing, at_image):
    found = objective(prediction_type, min_snr_gamma=5.0)
    found.alphas_cumprod = torch.tensor([0.0, 1.0])
    assert found.weights(torch.tensor([0, 1])).tolist() == [at_nothing, at_image]
    plain = objective(prediction_type)
    plain.alphas_cumprod = found.alphas_cumprod
    assert plain.weights(torch.tensor([0, 1])).isfinite().all()


def test_sample_target_weighs_as_a_v_target_up_to_a_limit():
    """v - v' = (x' - x) / sqrt(1 - abar), so that the squared error of v is 1 + SNR times that of x."""
    weights = (1 / (1 - ABAR)).clamp(max=MAX_SAMPLE_WEIGHT)
    assert weights[0] == MAX_SAMPLE_WEIGHT > weights[2] > weights[3] > 1
    loss = objective("sample").per_sample(SAMPLES + 0.5, SAMPLES, draws("sample"))
    torch.testing.assert_close(loss, 0.25 * weights, rtol=1e-4, atol=0)


def test_zero_terminal_snr_ends_in_pure_noise():
    found = objective("v_prediction", ZERO_SNR)
    last = Draw(NOISE, torch.full((4,), 999))
    assert torch.equal(found.noisy(SAMPLES, last), NOISE)
    assert torch.equal(found.target(SAMPLES, last), -SAMPLES)
    with pytest.raises(ValueError, match="must be v_prediction or sample, got epsilon"):
        objective("epsilon", ZERO_SNR)
    assert objective("epsilon", {"beta_schedule": "squaredcos_cap_v2"}).target_type == "epsilon"  # ends near it


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_draws_are_of_the_seed_alone():
    for prediction_type in ("epsilon", "flow"):
        found = objective(prediction_type)
        a, b, c = (found.draw(generator(seed), (64, 1, 4, 4)) for seed in (0, 0, 1))
        assert torch.equal(a.noise, b.noise) and torch.equal(a.times, b.times)
        assert not torch.equal(a.noise, c.noise) and not torch.equal(a.times, c.times)
        assert a.times.unique().numel() > 32 and a.times.min() >= 0 and a.times.max() < 1000


def test_noise_offset_is_constant_over_a_channel():
    plain = objective().draw(generator(), (8, 3, 4, 4))
    moved = objective(noise_offset=0.5).draw(generator(), (8, 3, 4, 4))
    assert torch.equal(plain.times, moved.times)
    offset = moved.noise - plain.noise
    torch.testing.assert_close(offset, offset[:, :, :1, :1].expand_as(offset), rtol=0, atol=1e-6)
    assert 0.3 < offset[:, :, 0, 0].std() < 0.8


def test_times_of_flow_are_shifted_and_distributed_as_told():
    def shares(**settings):
        schedule = {"shift": settings.pop("shift", 1.0)}
        return objective("flow", schedule, **settings).draw(generator(), (20000, 1, 1, 1)).times / 1000

    even = shares()
    quarters = torch.tensor([0.25, 0.5, 0.75])
    torch.testing.assert_close(even.quantile(quarters), quarters, rtol=0, atol=0.02)
    torch.testing.assert_close(shares(shift=3.0), 3 * even / (1 + 2 * even))
    logits = shares(timestep_density="logit_normal").logit()
    assert abs(logits.mean()) < 0.03 and abs(logits.std() - 1) < 0.03


def test_drawing_with_the_scheduler_in_between_changes_no_draw():
    """A validation sets the scheduler's sampling steps."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    found = Objective(scheduler, TrainingConfig("unused", 10))
    before = found.draw(generator(), (4, 1, 8, 8))
    scheduler.set_timesteps(5)
    after = found.draw(generator(), (4, 1, 8, 8))
    assert torch.equal(before.times, after.times)
    assert torch.equal(found.noisy(SAMPLES, before), found.noisy(SAMPLES, after))


def test_what_cannot_be_trained_is_refused():
    config = TrainingConfig("unused", 10)
    with pytest.raises(ValueError, match=r"must be DDPM-like with .* got EDMEulerScheduler"):
        Objective(EDMEulerScheduler(), config)
    with pytest.raises(ValueError, match="`use_dynamic_shifting=False`, got True"):
        objective("flow", {"use_dynamic_shifting": True})
    with pytest.raises(ValueError, match=r"`min_snr_gamma` is for DDPM-like schedules .* got 5"):
        objective("flow", min_snr_gamma=5.0)
    with pytest.raises(ValueError, match=r"`timestep_density` must be 'uniform' .* got 'logit_normal'"):
        objective("epsilon", timestep_density="logit_normal")
