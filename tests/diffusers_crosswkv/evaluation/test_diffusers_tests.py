"""Diffusers' tests with both classes: what is compared, and that every reason in the table is needed."""

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from diffusers_crosswkv.evaluation import diffusers_tests
from diffusers_crosswkv.evaluation.diffusers_tests import FILES, FileResult, compare_all, page, read_rows, unexplained
from diffusers_crosswkv.evaluation.diffusers_tests_reasons import INAPPLICABLE, Inapplicable

FOLDER = Path(__file__).parents[3] / "benchmarks/diffusers_tests"

SAMPLE = """
import diffusers
import pytest

class TestSample:
    def test_good(self):
        unet = diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(4, 12), norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=6, layers_per_block=1,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=2,
        )
        assert unet.config.get("crosswkv_head_dim", 4) == 4
        assert unet.__class__ is diffusers.UNet2DConditionModel

    @pytest.mark.parametrize("name", ["UNet2DConditionModel"])
    def test_name(self, name):
        assert diffusers.UNet2DConditionModel.__name__ == name

    def test_broken(self):
        raise RuntimeError

    @pytest.mark.skip
    def test_skipped(self):
        pass
"""


def test_the_table_of_reasons_is_the_committed_rows():
    rows = read_rows(FOLDER / "rows.jsonl")
    results = [diffusers_tests.result_of(row) for row in rows]
    assert [result.file for result in results] == [file for file in FILES if file in {r.file for r in results}]
    assert [test for result in results for test in unexplained(result)] == []
    failing = [f"{result.file}::{test}" for result in results for test in result.regressions]
    for entry in INAPPLICABLE:
        for pattern in entry.tests:
            assert any(fnmatchcase(name, pattern) for name in failing), f"{pattern} passes now: take it out"
    assert page(rows) == (FOLDER / "README.md").read_text(encoding="utf-8")


def test_both_classes_run_and_are_compared(tmp_path, monkeypatch):
    checkout = tmp_path / "v1.2.3"
    (checkout / "tests").mkdir(parents=True)
    (checkout / FILES[0]).parent.mkdir(parents=True)
    (checkout / FILES[0]).write_text(SAMPLE, encoding="utf-8")
    said = []
    (result,) = compare_all(checkout, tmp_path / "out", FILES[:1], said.append)
    name = "TestSample::test_name[UNet2DConditionModel]"
    assert result.stock == {"TestSample::test_good": "passed", name: "passed", "TestSample::test_broken": "failed"}
    assert result.regressions == unexplained(result) == [name]
    assert said[0] == f"{FILES[0]}: 1 of 2"
    assert "failed AssertionError" in said[1]
    (row,) = read_rows(tmp_path / "out/rows.jsonl")
    assert (row["tests"], row["file"]) == ("v1.2.3", FILES[0])
    assert "**Unexplained**: AssertionError" in (tmp_path / "out/README.md").read_text(encoding="utf-8")

    monkeypatch.setattr(
        diffusers_tests, "INAPPLICABLE", (Inapplicable("Names differ.", (f"{FILES[0]}::*test_name*",)),)
    )
    assert unexplained(result) == []
    assert "| **all** | 3 | 2 | 1 | 1 | 0 |" in page([row])
    assert "Names differ.\n\n- `models/unets/" in page([row])


def test_tests_that_vanish_or_are_skipped_with_ours_are_regressions():
    result = FileResult(
        "f", {"a": "passed", "b": "passed", "c": "failed"}, {"a": "skipped", "b": "missing", "c": "failed"}, {}
    )
    assert result.regressions == ["a", "b"]


def test_a_folder_that_is_no_checkout_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be a checkout of Diffusers' repository, but it has no tests/"):
        compare_all(tmp_path, tmp_path, FILES[:1])


def test_a_file_that_cannot_be_collected_is_an_error(tmp_path):
    (tmp_path / FILES[0]).parent.mkdir(parents=True)
    (tmp_path / FILES[0]).write_text("import no_such_library", encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"(?s)broke down in .* with the stock class.*no_such_library"):
        compare_all(tmp_path, tmp_path / "out", FILES[:1])
    assert read_rows(tmp_path / "out/rows.jsonl") == []
