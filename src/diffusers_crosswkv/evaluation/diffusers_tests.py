"""Diffusers' own tests, run with the stock U-Net and with ours in its place, and compared test by test."""

import json
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..environment import environment
from .diffusers_tests_reasons import INAPPLICABLE
from .diffusers_tests_stand_ins import write_stand_ins
from .kernel_rows import commit
from .tables import markdown

FILES = (
    "tests/models/unets/test_models_unet_2d_condition.py",
    "tests/models/test_models_auto.py",
    "tests/lora/test_lora_layers_sd.py",
    "tests/lora/test_lora_layers_sdxl.py",
    "tests/pipelines/test_pipelines.py",
    "tests/pipelines/test_pipeline_utils.py",
    "tests/pipelines/stable_diffusion/test_stable_diffusion.py",
    "tests/pipelines/stable_diffusion/test_stable_diffusion_img2img.py",
    "tests/pipelines/stable_diffusion/test_stable_diffusion_inpaint.py",
    "tests/pipelines/stable_diffusion/test_stable_diffusion_instruction_pix2pix.py",
    "tests/pipelines/stable_diffusion_2/test_stable_diffusion.py",
    "tests/pipelines/stable_diffusion_2/test_stable_diffusion_depth.py",
    "tests/pipelines/stable_diffusion_2/test_stable_diffusion_inpaint.py",
    "tests/pipelines/stable_diffusion_2/test_stable_diffusion_upscale.py",
    "tests/pipelines/stable_diffusion_xl/test_stable_diffusion_xl.py",
    "tests/pipelines/stable_diffusion_xl/test_stable_diffusion_xl_img2img.py",
    "tests/pipelines/stable_diffusion_xl/test_stable_diffusion_xl_inpaint.py",
    "tests/pipelines/stable_diffusion_xl/test_stable_diffusion_xl_adapter.py",
    "tests/pipelines/stable_diffusion_xl/test_stable_diffusion_xl_instruction_pix2pix.py",
    "tests/pipelines/stable_diffusion_adapter/test_stable_diffusion_adapter.py",
    "tests/pipelines/controlnet/test_controlnet.py",
    "tests/pipelines/controlnet/test_controlnet_img2img.py",
    "tests/pipelines/controlnet/test_controlnet_inpaint.py",
    "tests/pipelines/controlnet/test_controlnet_sdxl.py",
    "tests/pipelines/controlnet/test_controlnet_sdxl_img2img.py",
    "tests/pipelines/controlnet/test_controlnet_inpaint_sdxl.py",
    "tests/pipelines/pag/test_pag_sd.py",
    "tests/pipelines/pag/test_pag_sd_img2img.py",
    "tests/pipelines/pag/test_pag_sd_inpaint.py",
    "tests/pipelines/pag/test_pag_sdxl.py",
    "tests/pipelines/pag/test_pag_sdxl_img2img.py",
    "tests/pipelines/pag/test_pag_sdxl_inpaint.py",
    "tests/pipelines/pag/test_pag_controlnet_sd.py",
    "tests/pipelines/pag/test_pag_controlnet_sdxl.py",
    "tests/pipelines/latent_consistency_models/test_latent_consistency_models.py",
    "tests/pipelines/latent_consistency_models/test_latent_consistency_models_img2img.py",
)
PLUGINS = {
    "stock": "diffusers.utils",  # so that the installed Diffusers is imported before the checkout's folder is seen
    "ours": "diffusers_crosswkv.evaluation.diffusers_tests_plugin",
}
SECONDS = 3600.0


@dataclass(frozen=True)
class FileResult:
    """What became of the tests of one file; only those that ran with the stock class are listed."""

    file: str
    stock: dict[str, str]  # test -> passed, failed or error
    ours: dict[str, str]  # test -> passed, failed, error, skipped or missing
    messages: dict[str, str]  # test -> the error with ours, where it passes with the stock class

    @property
    def comparable(self) -> list[str]:
        return [test for test, outcome in self.stock.items() if outcome == "passed"]

    @property
    def regressions(self) -> list[str]:
        """Tests that pass with the stock class and not with ours."""
        return [test for test in self.comparable if self.ours[test] != "passed"]


def reason_for(file: str, test: str) -> str | None:
    """Why a test cannot pass with our class, if the table says so."""
    name = f"{file}::{test}"
    return next((entry.reason for entry in INAPPLICABLE if any(fnmatchcase(name, p) for p in entry.tests)), None)


def unexplained(result: FileResult) -> list[str]:
    return [test for test in result.regressions if reason_for(result.file, test) is None]


def compare_file(checkout: Path, file: str, seconds: float = SECONDS) -> FileResult:
    """Run one test file with both classes.

    Raises:
        FileNotFoundError: the checkout has no such file.
        RuntimeError: the file cannot be collected with the stock class, or pytest broke down.
    """
    if not (checkout / file).is_file():
        raise FileNotFoundError(f"{checkout} must be a checkout of Diffusers' repository, but it has no {file}.")
    stock, _ = run_file(checkout, file, "stock", seconds)
    ours, messages = run_file(checkout, file, "ours", seconds)
    stock = {test: outcome for test, outcome in stock.items() if outcome != "skipped"}
    ours = {test: ours.get(test, "missing") for test in stock}
    result = FileResult(file, stock, ours, {})
    result.messages.update({test: messages.get(test, "") for test in result.regressions})
    return result


def run_file(checkout: Path, file: str, side: str, seconds: float) -> tuple[dict[str, str], dict[str, str]]:
    """`{test: outcome}` and `{test: message}` of one file in a process of its own, without network."""
    with tempfile.TemporaryDirectory() as folder:
        report, cache = Path(folder, "report.xml"), Path(folder, "hub")
        write_stand_ins(cache)
        command = [sys.executable, "-m", "pytest", "-q", "-p", PLUGINS[side], "-p", "no:cacheprovider"]
        command += ["-o", "junit_family=xunit1", f"--junitxml={report}", file]
        done = subprocess.run(
            command,
            cwd=checkout,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if done.returncode not in (0, 1, 5) or not report.exists():  # 1: tests failed, 5: all were skipped
            raise RuntimeError(f"pytest broke down in {file} with the {side} class:\n{done.stdout[-2000:]}")
        return read_report(report)


def read_report(report: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Outcomes and messages of a JUnit report, by `Class::test`."""
    outcomes, messages = {}, {}
    for case in ElementTree.parse(report).iter("testcase"):
        classes = re.findall(r"\.([A-Z]\w*)", case.get("classname", ""))
        name = "::".join([*classes, case.get("name", "")])
        problem = next((x for x in case if x.tag in ("failure", "error", "skipped")), None)
        outcomes[name] = "passed" if problem is None else {"failure": "failed"}.get(problem.tag, problem.tag)
        if problem is not None:
            messages[name] = (problem.get("message") or "").strip().split("\n")[0][:200]
    return outcomes, messages


def compare_all(
    checkout: Path, folder: Path, files: Sequence[str] = FILES, tell: Callable[[str], None] = print
) -> list[FileResult]:
    """Compare files one after another; rows and the page in `folder` are written after each.

    Rows of files that are not run again are kept.
    """
    about = about_run(checkout)
    rows_path = folder / "rows.jsonl"
    rows = {row["file"]: row for row in read_rows(rows_path)}
    results = []
    for file in files:
        result = compare_file(checkout, file)
        results.append(result)
        rows[file] = asdict(result) | about
        known = [rows[name] for name in FILES if name in rows]
        folder.mkdir(parents=True, exist_ok=True)
        rows_path.write_text("".join(json.dumps(row) + "\n" for row in known), encoding="utf-8")
        (folder / "README.md").write_text(page(known), encoding="utf-8")
        passed = len(result.comparable) - len(result.regressions)
        tell(f"{file}: {passed} of {len(result.comparable)}")
        for test in unexplained(result):
            tell(f"  {test}: {result.ours[test]} {result.messages[test]}")
    return results


def about_run(checkout: Path) -> dict[str, Any]:
    """Versions of everything that took part, and of the tests: the checkout's `__version__`, or its folder's name."""
    found = re.search(r"__version__ = .(.+?).\n", read_text(checkout / "src/diffusers/__init__.py"))
    versions = {name: metadata.version(name) for name in ("peft", "accelerate")}
    tests = found.group(1) if found else checkout.resolve().name
    return {**environment(torch.device("cpu")), **versions, "tests": tests, "commit": commit()}


def read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_text(path).splitlines()]


def result_of(row: dict[str, Any]) -> FileResult:
    return FileResult(row["file"], row["stock"], row["ours"], row["messages"])


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The Markdown page of all rows; every figure in it is counted from them."""
    results = [result_of(row) for row in rows]
    lines = [
        (
            f"`{result.file.removeprefix('tests/')}`",
            str(len(result.stock)),
            str(len(result.comparable)),
            str(len(result.comparable) - len(result.regressions)),
            str(len(result.regressions) - len(unexplained(result))),
            str(len(unexplained(result))),
        )
        for result in results
    ]
    sums = [str(sum(int(line[column]) for line in lines)) for column in range(1, 6)]
    header = ("file", "run", "pass with stock", "of these, with ours", "cannot apply", "unexplained")
    parts = [INTRODUCTION, about_text(rows), markdown(header, [*lines, ("**all**", *sums)])]
    not_run = [f"`{file.removeprefix('tests/')}`" for file in FILES if file not in {row["file"] for row in rows}]
    parts += [f"Not run: {', '.join(not_run)}."] if not_run else []
    parts += ["## Tests that pass with the stock class and not with ours", *reason_sections(results)]
    return "\n\n".join(parts) + "\n"


def about_text(rows: Sequence[dict[str, Any]]) -> str:
    names = ("date", "commit", "tests", "diffusers", "transformers", "peft", "accelerate", "torch", "python")
    found = {name: sorted({str(row[name]) for row in rows}) for name in names}
    return "; ".join(f"{name} {', '.join(values)}" for name, values in found.items()) + ". On a CPU."


def reason_sections(results: Sequence[FileResult]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for result in results:
        for test in result.regressions:
            reason = reason_for(result.file, test) or f"**Unexplained**: {result.messages[test]}"
            by_reason.setdefault(reason, []).append(f"`{result.file.removeprefix('tests/')}::{test}`")
    return [f"{reason}\n\n" + "\n".join(f"- {test}" for test in tests) for reason, tests in by_reason.items()]


INTRODUCTION = """# Diffusers' own tests with our U-Net

This page is written by `scripts/run_diffusers_tests.py` from the rows beside it; no figure is typed. It runs files of
Diffusers' own tests twice, with `UNet2DConditionModel` and with `DIR7UNet2DConditionModel` in its place, and compares
test by test. The run is offline: tiny text encoders with random weights stand in for those that the tests fetch. Tests
that do not pass with the stock class here (most of them need the network or fixed pixel values of the real text
encoders) say nothing about ours; tests for GPUs are skipped on both sides.

    git clone --depth 1 --branch v0.40.0 https://github.com/huggingface/diffusers
    pip install parameterized requests-mock
    python scripts/run_diffusers_tests.py diffusers"""
