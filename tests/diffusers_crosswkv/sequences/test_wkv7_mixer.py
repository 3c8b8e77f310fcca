import pytest
import torch
from crosswkv_kernels import wkv7_reference

from diffusers_crosswkv.sequences.wkv7_mixer import WKV7Mixer, doubled_rate

WIDTH, HEAD_DIM = 16, 8


def make_mixer(**options):
    options = {"rate_limit": 2, "delta_rule": True, "learned_start": True, "output_norm": True} | options
    mixer = WKV7Mixer(WIDTH, HEAD_DIM, **options).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(std=0.4)
    return mixer


def random_transitions(count, extreme):
    """Log decays, rates in (0, 1) and unit removal keys, `[count, K]` each."""
    w = -0.6065 * torch.rand(count, HEAD_DIM, dtype=torch.float64)
    a = torch.rand(count, HEAD_DIM, dtype=torch.float64)
    if extreme:
        w, a = w * torch.randint(2, w.shape), (a > 0.3).double()
    kappa = torch.nn.functional.normalize(torch.randn(count, HEAD_DIM, dtype=torch.float64), dim=-1)
    return w, a, kappa


def matrix(w, a, kappa):
    return torch.diag_embed(w.exp()) - kappa[:, :, None] * (a * kappa)[:, None, :]


@pytest.mark.parametrize("extreme", [False, True])
def test_doubled_rate_never_makes_a_state_grow(extreme):
    w, a, kappa = random_transitions(2000, extreme)
    norms = torch.linalg.matrix_norm(matrix(w, doubled_rate(w, a), kappa), ord=2)
    assert norms.max() <= 1 + 1e-12
    beyond = torch.linalg.matrix_norm(matrix(w, 1.1 * doubled_rate(w, torch.ones_like(a)), kappa), ord=2)
    assert beyond.max() > 1.05  # the bound is as wide as it can be


@pytest.mark.parametrize("extreme", [False, True])
def test_rates_per_channel_have_eigenvalues_in_range(extreme):
    w, a, kappa = random_transitions(500, extreme)
    rate = a * (1 + w.exp())
    eigenvalues = torch.linalg.eigvals(matrix(w, rate, kappa))
    assert eigenvalues.imag.abs().max() < 1e-6
    assert eigenvalues.real.abs().max() <= 1 + 1e-6


def test_rates_per_channel_have_products_that_grow():
    w, a, kappa = random_transitions(500, extreme=True)
    undecayed = matrix(torch.zeros_like(w), 2 * a, kappa)
    pairs = undecayed[:250] @ undecayed[250:]
    assert torch.linalg.eigvals(pairs).abs().max() > 1.1


def test_doubled_rate_reaches_both_ends():
    zero = torch.zeros(1, HEAD_DIM, dtype=torch.float64)
    rates = [doubled_rate(zero, zero + a)[0, 0].item() for a in (0, 0.04, 0.25, 0.5, 0.75, 0.96, 1)]
    assert rates == pytest.approx([0, 0, 0.45, 1, 1.55, 2, 2], abs=1e-12)
    assert rates[1] == 0 and rates[-2] == 2


def test_doubled_rate_swaps_two_directions():
    kappa = torch.zeros(1, HEAD_DIM, dtype=torch.float64)
    kappa[0, 0], kappa[0, 3] = 0.5**0.5, -(0.5**0.5)
    zero = torch.zeros_like(kappa)
    swap = matrix(zero, doubled_rate(zero, zero + 1), kappa)[0]
    assert torch.allclose(swap, torch.eye(HEAD_DIM, dtype=torch.float64)[[3, 1, 2, 0, 4, 5, 6, 7]])


@pytest.mark.parametrize("options", [{}, {"rate_limit": 1}, {"delta_rule": False}, {"learned_start": False}], ids=str)
def test_scan_is_the_reference(options):
    mixer, x = make_mixer(**options), torch.randn(2, 9, WIDTH, dtype=torch.float64)
    write, first = mixer.write(x), mixer.first_state(x)
    receptance = mixer.to_q(x).unflatten(-1, (2, HEAD_DIM))
    expected, last = wkv7_reference(receptance, *write, initial_state=first, output_final_state=True)
    read = mixer.norm(expected, receptance, write.k, write.v, mixer.gate_lora(x))
    torch.testing.assert_close(mixer(x), mixer.to_out(read))
    states = mixer.states(x)
    assert states.shape == (2, 9, 2, HEAD_DIM, HEAD_DIM)
    torch.testing.assert_close(states[:, -1], last)
    torch.testing.assert_close((states @ receptance[..., None])[..., 0], expected)


def test_rates_and_removal_keys_of_each_arm():
    x = 5 * torch.randn(2, 9, WIDTH, dtype=torch.float64)
    one, two, none = (make_mixer(**o).write(x) for o in ({"rate_limit": 1}, {}, {"delta_rule": False}))
    assert one.a.min() > 0 and one.a.max() <= 1
    assert 1 < two.a.max() <= 2
    assert torch.equal(two.a, two.a[..., :1].expand_as(two.a))
    assert (one.kappa.norm(dim=-1) - 1).abs().max() < 1e-9
    assert none.kappa.abs().max() == 0
