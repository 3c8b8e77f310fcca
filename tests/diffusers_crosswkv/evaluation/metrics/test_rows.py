import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from metric_cases import save_clip
from pictures import write_image
from safetensors.torch import load_file

from diffusers_crosswkv.evaluation.metrics import EvaluationConfig, evaluate, features, inception_figures, run
from diffusers_crosswkv.evaluation.metrics.extractors import ClipEmbeddings, ClipScores
from diffusers_crosswkv.evaluation.metrics.features import FeatureFiles
from diffusers_crosswkv.evaluation.metrics.npz_images import open_images
from diffusers_crosswkv.evaluation.metrics.rows import put_row

ROW = {"name": "fid", "value": 1, "samples": "one", "weights": "a", "prompts": "p", "subset_size": 4}


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_repeated_measurement_takes_the_place_of_the_first(tmp_path):
    put_row(tmp_path / "rows.jsonl", ROW)
    put_row(tmp_path / "rows.jsonl", ROW | {"value": 2, "date": "later"})
    assert read(tmp_path / "rows.jsonl") == [ROW | {"value": 2, "date": "later"}]


@pytest.mark.parametrize("name", ["samples", "model", "seed", "weights", "prompts", "reference", "subset_size"])
def test_another_measurement_is_added(tmp_path, name):
    put_row(tmp_path / "rows.jsonl", ROW)
    put_row(tmp_path / "rows.jsonl", ROW | {name: "other"})
    assert len(read(tmp_path / "rows.jsonl")) == 2


@pytest.fixture
def sides(tmp_path, tokenizer):
    """Four samples, six reference images, a model for CMMD."""
    for side, count in (("samples", 4), ("reference", 6)):
        for number in range(count):
            write_image(tmp_path / side / f"{number}.png", 8, 8, number)
    save_clip(tmp_path / "clip", tokenizer)
    return tmp_path


def config_of(folder, *metrics):
    model = str(folder / "clip")
    return EvaluationConfig(folder / "samples", folder / "out", metrics, reference=folder / "reference",
                            prompts=("one", "two"), clip_model=model, cmmd_model=model)  # fmt: skip


def test_rows_are_written_as_they_come(sides, monkeypatch):
    """What fails last loses nothing that was computed before."""

    def fail(*features):
        raise MemoryError

    monkeypatch.setattr(run, "cmmd", fail)
    with pytest.raises(MemoryError):
        evaluate(config_of(sides, "clip_score", "cmmd"), PartialState(cpu=True))
    assert [row["metric"] for row in read(sides / "out/results.jsonl")] == ["clip_score"]


@pytest.mark.parametrize("sign", [1, -1])
def test_clip_score_of_negative_pairs(sides, monkeypatch, sign):
    """torchmetrics sums all cosines and sets the mean alone to 0 where it is negative."""
    of_images, noise = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    of_prompts = sign * torch.tensor([[3.0], [-1.0], [2.0], [-1.0]]) * of_images + noise
    network = SimpleNamespace(
        get_image_features=lambda **pixels: SimpleNamespace(pooler_output=of_images),
        get_text_features=lambda **tokens: SimpleNamespace(pooler_output=of_prompts),
    )
    monkeypatch.setattr(ClipScores, "network", network)
    config = dataclasses.replace(config_of(sides, "clip_score"), prompts=("one", "two", "three", "four"))
    (row,) = evaluate(config, PartialState(cpu=True))
    unit = [x / x.norm(p=2, dim=-1, keepdim=True) for x in (of_images, of_prompts)]
    score = 100 * (unit[0] * unit[1]).sum(axis=-1)
    assert (score < 0).sum() == 2
    expected = torch.max(score.sum(0) / len(score), torch.zeros(()))
    assert row["value"] == pytest.approx(float(expected), rel=1e-5)
    assert row["deviation"] == pytest.approx(float(score.std()), rel=1e-5)
    assert (row["value"] > 0) == (sign > 0)


def test_cmmd_embeds_only_what_it_compares(sides, monkeypatch):
    monkeypatch.setattr(inception_figures.manifold_indices, "__defaults__", (3,))
    (row,) = evaluate(config_of(sides, "cmmd"), PartialState(cpu=True))
    assert row["reference_images"] == 3 and row["reference_size"] == [8, 8]
    (file,) = (sides / "out/features/reference-cmmd").iterdir()
    assert file.name == "0000000-0000003.safetensors"


def test_a_damaged_feature_file_is_made_again(sides):
    images = open_images(sides / "samples")
    network = ClipEmbeddings(str(sides / "clip"), torch.device("cpu"))
    files = FeatureFiles(sides / "features", images, network, len(images), features.BATCH_SIZE)
    files.extract(PartialState(cpu=True), "features")
    (path,) = (sides / "features").iterdir()
    content, made = path.read_bytes(), {name: x.clone() for name, x in load_file(path).items()}
    path.write_bytes(content[: len(content) // 2])
    files.extract(PartialState(cpu=True), "features")
    torch.testing.assert_close(load_file(path), made)
