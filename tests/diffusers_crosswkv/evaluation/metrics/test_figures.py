"""Figures from features, against closed forms, SciPy, brute force, and what torch-fidelity prints."""

import json

import numpy as np
import pytest
import scipy.linalg
import torch
from metric_cases import RECORDED, SUBSET_SIZE, SUBSETS, correlated, some_logits, two_sets

from diffusers_crosswkv.evaluation.metrics.clip_score import clip_score
from diffusers_crosswkv.evaluation.metrics.frechet import Gaussian, Moments, frechet_distance, gaussian_of
from diffusers_crosswkv.evaluation.metrics.inception_score import inception_score
from diffusers_crosswkv.evaluation.metrics.kernel_distances import cmmd, kid
from diffusers_crosswkv.evaluation.metrics.manifolds import precision_recall

CLOSE = 1e-4
FIDELITY = json.loads(RECORDED.read_text(encoding="utf-8"))


def close(value, rel=CLOSE, **more):
    return pytest.approx(value, rel=rel, **more)


gaussian = Gaussian.from_covariance


def covariance(one):
    return one.factor.T @ one.factor


def by_sqrtm(one, other):
    step = one.mean - other.mean
    root = scipy.linalg.sqrtm(covariance(one) @ covariance(other))
    return step @ step + np.trace(covariance(one) + covariance(other) - 2 * root.real)


def of(features):
    return gaussian_of(x.numpy() for x in features.split(32))


def test_frechet_distance_as_torch_fidelity_and_scipy():
    one, other = map(of, two_sets())
    assert frechet_distance(one, other) == close(FIDELITY["frechet_inception_distance"])
    assert frechet_distance(one, other) == close(by_sqrtm(one, other), rel=1e-9)
    assert frechet_distance(one, other) == close(frechet_distance(other, one), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e6])
def test_frechet_distance_of_diagonal_covariances(scale):
    rng = np.random.RandomState(0)
    a, b = scale * rng.random_sample((2, 40))
    means = np.sqrt(scale) * rng.standard_normal((2, 40))
    expected = ((means[0] - means[1]) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(gaussian(means[0], np.diag(a)), gaussian(means[1], np.diag(b))) == close(
        expected, rel=1e-7
    )


def test_frechet_distance_of_one_dimension():
    one, other = gaussian(np.array([1.0]), np.array([[4.0]])), gaussian(np.array([3.0]), np.array([[9.0]]))
    assert frechet_distance(one, other) == close(4 + 1, rel=1e-12)


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_frechet_distance_of_singular_covariances(rank):
    """C = A A' and R C R' for a rotation R: tr((C1 C2)^(1/2)) is the nuclear norm of A' R A."""
    rng = np.random.RandomState(1)
    factor = rng.standard_normal((30, rank))
    turn = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    one, other = factor @ factor.T, turn @ factor @ factor.T @ turn.T
    overlap = np.linalg.svd(factor.T @ turn @ factor, compute_uv=False).sum()
    zero = np.zeros(30)
    distance = frechet_distance(gaussian(zero, one), gaussian(zero, other))
    assert distance == close(2 * np.trace(one) - 2 * overlap, abs=1e-12)


def test_frechet_distance_with_more_dimensions_than_samples():
    one, other = correlated(12, 200, 1), correlated(20, 200, 2, 0.05)
    centred = [(x - x.mean(0)).double().numpy() / np.sqrt(len(x) - 1) for x in (one, other)]
    overlap = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    step = (one.double().mean(0) - other.double().mean(0)).numpy()
    expected = step @ step + sum((x**2).sum() for x in centred) - 2 * overlap
    assert frechet_distance(of(one), of(other)) == close(expected)


def test_frechet_distance_to_itself_is_zero():
    for features in (correlated(12, 200, 1), correlated(300, 20, 1), torch.zeros(5, 8), torch.full((5, 8), 3.0)):
        one = of(features)
        assert frechet_distance(one, one) == close(0, abs=1e-9 * (1 + np.trace(covariance(one))))


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("count", [5, 9, 10, 70])
def test_moments_are_those_of_numpy(offset, count):
    """More vectors than dimensions, and fewer."""
    features = correlated(count, 9, 1).double().numpy() + offset
    moments = Moments(9)
    for batch in np.split(features, [1, 4]):
        moments.add(batch)
    one = moments.gaussian()
    np.testing.assert_allclose(one.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance(one), np.cov(features - offset, rowvar=False), rtol=1e-6, atol=1e-9)


def test_what_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        gaussian_of([np.zeros((1, 4))])
    with pytest.raises(ValueError, match="at least 2 images, got none"):
        gaussian_of([])
    with pytest.raises(ValueError, match="must be finite"):
        gaussian_of([np.full((3, 4), np.nan)])
    with pytest.raises(ValueError, match="got 4 and 5; were the statistics made with another network"):
        frechet_distance(gaussian_of([np.ones((3, 4))]), gaussian_of([np.ones((3, 5))]))


def test_inception_score_as_torch_fidelity():
    assert inception_score(some_logits(), split_size=20) == close(FIDELITY["inception_score_mean"], rel=1e-6)


def test_inception_score_splits_as_adm():
    """In order, the last part shorter; written as in the ADM suite."""
    p = some_logits().double().softmax(1).numpy()
    parts = [p[i : i + 25] for i in range(0, 60, 25)]
    scores = [np.exp((x * (np.log(x) - np.log(x.mean(0)))).sum(1).mean()) for x in parts]
    assert [len(x) for x in parts] == [25, 25, 10]
    assert inception_score(some_logits(), split_size=25) == close(np.mean(scores), rel=1e-9)


def test_inception_score_of_extremes():
    assert inception_score(torch.zeros(10, 7)) == close(1, rel=1e-9)
    assert inception_score(1e4 * torch.eye(7)) == close(7, rel=1e-9)  # ADM's float32 logarithm is NaN here


def brute_precision_recall(reference, samples, k=3):
    """In float64, vector by vector."""

    def square(a, b):
        return ((a - b) ** 2).sum()

    def inside(some, others):
        limits = [sorted(square(a, b) for b in others)[k] for a in others]
        return np.mean([any(square(x, a) <= r for a, r in zip(others, limits, strict=True)) for x in some])

    reference, samples = reference.double().numpy(), samples.double().numpy()
    return inside(samples, reference), inside(reference, samples)


def half_precision_recall(reference, samples, k=3):
    """ADM's formula in NumPy's float16."""

    def square(u, v):
        u, v = u.numpy().astype(np.float16), v.numpy().astype(np.float16)
        norms = [np.square(x).astype(np.float32).sum(1).astype(np.float16) for x in (u, v)]
        product = (u.astype(np.float32) @ v.astype(np.float32).T).astype(np.float16)
        return np.maximum(norms[0][:, None] - np.float16(2) * product + norms[1], np.float16(0)).astype(np.float32)

    limits = [np.partition(square(x, x), k, axis=1)[:, k] for x in (reference, samples)]
    between = square(reference, samples)
    return (between <= limits[0][:, None]).any(0).mean(), (between <= limits[1]).any(1).mean()


def whole_numbers(count, seed):
    """Distances between these are exact in float16, and many are equal."""
    return torch.from_numpy(np.random.RandomState(seed).randint(0, 5, (count, 6)).astype(np.float32))


def test_precision_recall_by_brute_force():
    one, other = whole_numbers(60, 1), whole_numbers(45, 2) + torch.tensor([2.0, 2, 0, 0, 0, 0])
    assert precision_recall(one, other) == brute_precision_recall(one, other)
    assert 0 < precision_recall(one, other)[0] < 1


def test_precision_recall_where_float16_overflows():
    samples, reference = (1e4 * x for x in two_sets())
    expected = brute_precision_recall(reference, samples)
    assert precision_recall(reference, samples) == close(expected)
    assert expected == close((FIDELITY["precision"], FIDELITY["recall"]), rel=1e-6)


def test_precision_recall_rounds_to_float16_as_adm():
    samples, reference = (x + 3 for x in two_sets())
    adm = half_precision_recall(reference, samples)
    assert precision_recall(reference, samples) == adm
    assert adm != brute_precision_recall(reference, samples)


def test_precision_recall_over_several_blocks(monkeypatch):
    from diffusers_crosswkv.evaluation.metrics import manifolds

    samples, reference = two_sets()
    whole = precision_recall(reference, samples)
    monkeypatch.setattr(manifolds, "BLOCK", 50)
    monkeypatch.setattr(manifolds, "TILE", 7)
    assert precision_recall(reference, samples) == whole


def test_precision_recall_of_extremes():
    vectors = correlated(20, 4, 1)
    assert precision_recall(vectors, vectors) == (1, 1)
    assert precision_recall(vectors, vectors + 100) == (0, 0)
    with pytest.raises(ValueError, match="at least 4 images on each side, got 3 \\(samples\\)"):
        precision_recall(vectors, vectors[:3])


def test_kid_as_torch_fidelity():
    mean, deviation = kid(*two_sets(), subsets=SUBSETS, subset_size=SUBSET_SIZE)
    assert mean == close(FIDELITY["kernel_inception_distance_mean"])
    assert deviation == close(FIDELITY["kernel_inception_distance_std"])


def test_kid_by_brute_force():
    x, y = (a[:6].double().numpy() for a in two_sets())

    def kernel(a, b):
        return (a @ b / 24 + 1) ** 3

    pairs = [(i, j) for i in range(6) for j in range(6)]
    expected = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs if i != j) / 30
    expected -= 2 * sum(kernel(x[i], y[j]) for i, j in pairs) / 36
    mean, deviation = kid(torch.tensor(x), torch.tensor(y), subsets=3, subset_size=6)
    assert mean == close(expected, rel=1e-9)
    assert deviation == close(0, abs=1e-12)
    with pytest.raises(ValueError, match="got 7 for 6 samples and 6 reference"):
        kid(torch.tensor(x), torch.tensor(y), subset_size=7)


def test_cmmd_by_brute_force(monkeypatch):
    from diffusers_crosswkv.evaluation.metrics import kernel_distances

    monkeypatch.setattr(kernel_distances, "CMMD_TILE", 4)
    x, y = (torch.nn.functional.normalize(a[:n].double()) for a, n in zip(two_sets(), (9, 7), strict=True))

    def mean(a, b):
        return np.mean([np.exp(-float((u - v).square().sum()) / 200) for u in a for v in b])

    assert cmmd(x, y) == close(1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y)), rel=1e-9)
    assert cmmd(x, x) == close(0, abs=1e-9)


def test_clip_score_is_a_mean_of_all_pairs():
    assert clip_score(torch.tensor([0.5, -0.25])) == close(12.5, rel=1e-6)
    assert clip_score(torch.tensor([0.25, -0.5])) == 0
