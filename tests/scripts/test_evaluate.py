"""The whole command, with a tiny pipeline and random weights: the figures mean nothing, how they are made does."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from metric_cases import inception_state, save_clip
from pictures import picture
from PIL import Image
from running import run_script, run_script_in_processes
from safetensors.torch import load_file

from diffusers_crosswkv.evaluation.metrics import PAPER_METRICS, PROTOCOLS

SCRIPT = Path(__file__).parents[2] / "scripts/evaluate.py"
PROMPTS = ("a handwritten one", "a handwritten two", "a handwritten three")
RESIZES = {
    **dict.fromkeys(("fid", "sfid", "is", "precision", "recall", "kid"), "TensorFlow 1 bilinear to 299 x 299"),
    "clip_score": "Pillow bicubic to shortest_edge 32, cropped to height 32 x width 32",
    "clip_score_multilingual": "Pillow bicubic to height 32 x width 32",  # SigLIP's
    "cmmd": "central square, Pillow bicubic to 32 x 32",
}


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(inception_state(), path)
    return path


@pytest.fixture
def run(monkeypatch, capsys, inception_weights):
    def call(*arguments):
        code = run_script(monkeypatch, SCRIPT, *arguments, "--inception_weights", inception_weights, "--device", "cpu")
        return code, capsys.readouterr().out

    return call


@pytest.fixture
def pipeline_dir(make_pipeline, tmp_path):
    make_pipeline().save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


@pytest.fixture
def prompts_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS), encoding="utf-8")
    return path


@pytest.fixture
def batch(tmp_path):
    """Four pictures of 8 pixels, as a folder and as an .npz batch of the same."""
    folder = tmp_path / "reference"
    folder.mkdir()
    for number in range(4):
        picture(8, 8, number).save(folder / f"{number}.png")
    images = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])
    np.savez(tmp_path / "reference.npz", images)
    return folder, tmp_path / "reference.npz"


def rows_in(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def check_names(rows, of_samples, reference):
    """Each says how large its images were and how they were resized, before and by the network."""
    for metric, row in rows.items():
        compared = "" if metric in ("is", "clip_score", "clip_score_multilingual") else f", {reference}, resize none"
        resize = RESIZES[metric]
        assert row["name"] == (
            f"{metric}: {row['num_samples']} samples of 8 x 8, resize none, {of_samples}{compared}, "
            f"network's resize {resize}"
        )
        assert (row["size"], row["resize"], row["network_resize"]) == ([8, 8], "none", resize)


def test_from_pipeline_to_rows(run, pipeline_dir, prompts_file, batch, tmp_path):
    output = tmp_path / "evaluation"
    made = ("--model", pipeline_dir, "--prompts_file", prompts_file, "--num_samples", 5, "--sampling_batch_size", 2,
            "--scheduler", "DDPM", "--steps", 2, "--guidance_scale", 2, "--seed", 7)  # fmt: skip
    measured = ("--reference", batch[1], "--output_dir", output, "--batch_size", 4)
    code, printed = run(*made, *measured, "--metrics", "fid", "sfid", "is", "precision", "recall", "kid")
    assert code == 0
    rows = {row["metric"]: row for row in rows_in(output)}
    assert list(rows) == ["fid", "sfid", "is", "precision", "recall", "kid"]
    check_names(rows, "DDPMScheduler, 2 steps, guidance 2", "reference reference.npz")
    assert f"  {rows['fid']['name']}\n" in printed
    for row in rows.values():
        assert np.isfinite(row["value"]) and row["weights"].startswith("inception.pth sha256:")
        assert (row["sampler"], row["steps"], row["guidance"], row["seed"]) == ("DDPMScheduler", 2, 2, 7)
        assert row.keys() >= {"date", "device", "torch", "commit", "protocol", "model", "processes"}
    assert rows["fid"]["reference_images"] == 4
    assert rows["kid"]["subset_size"] == 4
    assert 1 <= rows["is"]["value"] <= 5
    before = file_times(output)
    again = run(*made, *measured, "--metrics", "fid")
    assert again == (0, next(line + "\n" for line in printed.splitlines() if "fid:" in line and "sfid" not in line))
    assert file_times(output) == before, "all there already"


def file_times(output):
    files = [*output.glob("samples/*.png"), *output.glob("features/*/*")]
    assert len(files) == 5 + 2 + 1
    return {path: path.stat().st_mtime_ns for path in files}


def test_folder_and_batch_of_the_same_images(run, batch, tmp_path):
    folder, npz = batch
    code, _ = run("--samples", folder, "--reference", npz, "--output_dir", tmp_path / "out",
                  "--scheduler", "ddim", "--steps", 50)  # fmt: skip
    assert code == 0
    values = {row["metric"]: row["value"] for row in rows_in(tmp_path / "out")}
    assert values["fid"] == pytest.approx(0, abs=1e-4) and values["sfid"] == pytest.approx(0, abs=1e-4)
    assert (values["precision"], values["recall"]) == (1, 1)
    assert "DDIMScheduler, 50 steps, guidance not stated" in rows_in(tmp_path / "out")[0]["name"]


def test_statistics_of_a_reference_are_taken_as_they_are(run, batch, tmp_path):
    """FID alone then needs no image of the reference; precision does."""
    code, _ = run("--samples", batch[0], "--metrics", "is", "--output_dir", tmp_path / "out")
    assert code == 0
    (features,) = (tmp_path / "out/features").glob("*/*")
    pool = load_file(features)["pool"].numpy() + 1
    np.savez(tmp_path / "statistics.npz", mu=pool.mean(0), sigma=np.cov(pool, rowvar=False))
    arguments = ("--samples", batch[0], "--reference", tmp_path / "statistics.npz", "--output_dir", tmp_path / "out")
    code, _ = run(*arguments, "--metrics", "fid")
    assert code == 0
    assert rows_in(tmp_path / "out")[1]["value"] == pytest.approx(2048, rel=1e-4), "a step of 1 in 2,048 dimensions"
    assert len(list((tmp_path / "out/features").glob("*/*"))) == 1
    code, _ = run(*arguments, "--metrics", "precision")
    assert "precision must have images to compare with" in code


def test_clip(run, batch, prompts_file, tokenizer, tmp_path):
    """Scores of the first images alone, and of each scorer's model."""
    save_clip(tmp_path / "clip", tokenizer)
    save_clip(tmp_path / "siglip", tokenizer, "Siglip")
    models = ("--clip_model", tmp_path / "clip", "--multilingual_clip_model", tmp_path / "siglip",
              "--cmmd_model", tmp_path / "clip")  # fmt: skip
    asked = ("--metrics", "clip_score", "clip_score_multilingual", "cmmd", "--prompts_file", prompts_file)
    code, _ = run("--samples", batch[0], "--reference", batch[1], "--output_dir", tmp_path / "out", *asked, *models)
    assert code == 0
    rows = {row["metric"]: row for row in rows_in(tmp_path / "out")}
    assert [row["num_samples"] for row in rows.values()] == [3, 3, 4]
    assert [row["weights"].split(" ")[0] for row in rows.values()] == ["clip", "siglip", "clip"]
    assert rows["clip_score"]["cut_prompts"] == 0 and "reference" not in rows["clip_score"]
    assert rows["cmmd"]["value"] == pytest.approx(0, abs=1e-4), "the same images"
    check_names(rows, "sampler not stated, steps not stated, guidance not stated", "reference reference.npz")
    code, _ = run("--samples", batch[0], "--output_dir", tmp_path / "out", *asked[:2], "--num_prompts", 2, *asked[4:],
                  *models)  # fmt: skip
    assert code == 0
    assert [row["num_samples"] for row in rows_in(tmp_path / "out")] == [3, 3, 4, 2]


def test_two_processes_go_on_where_one_stopped(
    run, pipeline_dir, prompts_file, batch, tokenizer, tmp_path, inception_weights
):
    """From what a stopped run leaves, two processes make what one alone makes."""
    save_clip(tmp_path / "clip", tokenizer)
    output = tmp_path / "out"
    command = ["--model", pipeline_dir, "--prompts_file", prompts_file, "--num_samples", 3, "--steps", 2,
               "--batch_size", 1, "--reference", batch[0], "--metrics", "fid", "is", "clip_score", "cmmd",
               "--clip_model", tmp_path / "clip", "--cmmd_model", tmp_path / "clip",
               "--output_dir", output]  # fmt: skip
    assert run(*command)[0] == 0
    alone, images = rows_in(output), {path: path.read_bytes() for path in output.glob("samples/*.png")}
    files = [path for path in output.rglob("*") if path.is_file()]
    left = [path for path in files if path.name.startswith(("samples.json", "000001.", "0000001-"))]
    assert len(left) == 2 + 5, "an image, and features of a second one of each side"
    for path in set(files) - set(left):
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in left if path.name != "samples.json"}
    (output / "samples/000000.9.tmp").write_bytes(b"half of an image")
    more = ("--inception_weights", inception_weights, "--device", "cpu")
    run_script_in_processes(SCRIPT, [*command, *more], 2)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "not made twice"
    assert {path: path.read_bytes() for path in output.glob("samples/*.png")} == images and len(images) == 3
    both = rows_in(output)
    assert [row["metric"] for row in both] == ["fid", "is", "clip_score", "cmmd"]
    assert [row["processes"] for row in alone + both] == [1] * 4 + [2] * 4
    assert [row["value"] for row in alone] == [row["value"] for row in both]


@pytest.fixture
def small_protocol(monkeypatch):
    """CIFAR-10's, of few pictures of 8 pixels."""
    small = dataclasses.replace(
        PROTOCOLS["cifar10"], side=8, reference_images=4, num_samples=12, steps=2, num_prompts=11
    )
    monkeypatch.setitem(PROTOCOLS, "cifar10", small)


def test_a_protocol_is_one_command(
    run, small_protocol, pipeline_dir, prompts_file, batch, tokenizer, tmp_path, monkeypatch
):
    save_clip(tmp_path / "clip", tokenizer)
    monkeypatch.chdir(tmp_path)
    command = ("--protocol", "cifar10", "--model", pipeline_dir, "--reference", batch[0])
    assert run(*command, "--clip_model", tmp_path / "clip", "--sampling_batch_size", 12)[0] == 0
    output = Path("runs/evaluation/cifar10")
    rows = rows_in(output)
    assert [row["metric"] for row in rows] == list(PAPER_METRICS)
    for row in rows:
        assert (row["protocol"], row["sampler"], row["steps"], row["seed"]) == ("cifar10", "DDPMScheduler", 2, 0)
        assert row["num_samples"] == (11 if row["metric"] == "clip_score" else 12)
    prompts = (output / "prompts.txt").read_text(encoding="utf-8").splitlines()
    assert (len(prompts), prompts[0], prompts[10]) == (12, "an airplane", "a photo of an airplane")
    made = json.loads((output / "samples/samples.json").read_text(encoding="utf-8"))["asked"]
    assert made["prompts"] == prompts and (made["height"], made["width"]) == (8, 8)
    score = ("--metrics", "clip_score", "--clip_model", tmp_path / "clip", "--protocol", "cifar10")
    assert run(*score, "--samples", output / "samples", "--prompts_file", output / "prompts.txt")[0] == 0
    again = rows_in(output)
    assert [row["metric"] for row in again] == list(PAPER_METRICS) and again[-1]["value"] == rows[-1]["value"]
    code, _ = run(*command, *score, "--prompts_file", prompts_file, "--output_dir", tmp_path / "own")
    assert code == 0 and rows_in(tmp_path / "own")[0]["num_samples"] == 11, "three prompts, again and again"


def test_what_is_refused(run, batch, prompts_file, pipeline_dir, tmp_path):
    folder, npz = batch
    where = ("--output_dir", tmp_path / "out")
    code, _ = run("--samples", folder, "--metrics", "fid", *where)
    assert code == "error: fid must have a reference to compare with (--reference), got none."
    code, _ = run("--samples", folder, "--metrics", "speed", *where)
    assert code.startswith("error: `metrics` must be of fid, sfid, ") and code.endswith("got 'speed'.")
    code, _ = run("--samples", folder, "--metrics", "is", "--protocol", "cifar10", "--steps", 50, *where)
    for wrong in (
        "samples must be 10000, got 4",
        "size of samples must be (32, 32), got (8, 8)",
        "sampler must be DDPMScheduler, got None",
        "steps must be 250, got 50",
    ):
        assert wrong in code
    made = ("--model", pipeline_dir, "--prompts_file", prompts_file, "--protocol", "cifar10", *where)
    code, _ = run(*made, "--reference", npz, "--metrics", "fid")
    for wrong in ("size of the reference must be (32, 32), got (8, 8)", "reference images must be 50000, got 4"):
        assert wrong in code
    scored = ("--metrics", "clip_score", "--prompts_file", prompts_file)
    code, _ = run("--samples", folder, "--protocol", "cifar10", *scored, *where)
    assert "prompts of the CLIP score must be 1000, got 3" in code
    code, _ = run(*made, "--metrics", "is", "--scheduler", "ddim", "--steps", 250, "--height", 8, "--num_prompts", 2)
    assert "--scheduler must be DDPMScheduler, got DDIMScheduler; --height must be 32, got 8; --num_prompts m" in code
    faces = ("--protocol", "celeba64", "--reference", folder, "--reference_resize", 8)
    code, _ = run("--samples", folder, *faces, *where)
    assert "celeba64: --reference_resize must be 64, got 8. Leave that to --protocol" in code
    code, _ = run("--model", pipeline_dir, "--reference", npz, "--protocol", "imagenet256", *where)
    assert "ImageNet's 1000 class names, from LOC_synset_mapping.txt or synset_words.txt, got 0 in or beside" in code
    code, _ = run("--samples", folder, "--metrics", "clip_score", *where)
    assert code == "error: clip_score must have the prompts of the images (--prompts_file), got none."
    code, _ = run("--model", pipeline_dir, "--prompts_file", prompts_file, "--num_samples", 1, "--steps", 1,
                  "--metrics", "is", "clip_score", "--clip_model", "nobody/nothing", *where)  # fmt: skip
    assert code.startswith("error: nobody/nothing is neither a folder")
    assert not (tmp_path / "out").exists()
    made = ("--model", pipeline_dir, "--prompts_file", prompts_file, "--num_samples", 1, "--metrics", "is", *where)
    assert run(*made, "--steps", 1)[0] == 0
    code, _ = run(*made, "--steps", 2)
    assert "holds samples of other settings (num_inference_steps: 1, asked 2); choose another --output_dir" in code


def test_samples_are_those_of_the_pipeline(run, pipeline_dir, prompts_file, make_pipeline, tmp_path):
    """Not of another one in the same folder, nor whatever else lies beside them."""
    made = ("--model", pipeline_dir, "--prompts_file", prompts_file, "--steps", 1, "--metrics", "is",
            "--output_dir", tmp_path / "out")  # fmt: skip
    assert run(*made, "--num_samples", 2)[0] == 0
    picture(8, 8, 1).save(tmp_path / "out/samples/grid.png")
    shutil.copytree(pipeline_dir, tmp_path / "moved")
    assert run("--model", tmp_path / "moved", *made[2:], "--num_samples", 1)[0] == 0
    rows = rows_in(tmp_path / "out")
    assert [row["num_samples"] for row in rows] == [2, 1]
    assert rows[0]["model"].startswith(f"{pipeline_dir} sha256:")
    pipeline = make_pipeline()
    with torch.no_grad():
        next(pipeline.unet.parameters()).add_(1)
    pipeline.save_pretrained(pipeline_dir)
    code, _ = run(*made, "--num_samples", 2)
    assert "holds samples of other settings (weights: sha256:" in code


def test_samples_are_those_of_a_commit(run, pipeline_dir, prompts_file, tmp_path, monkeypatch):
    """A branch of the Hub that has moved on is another pipeline."""
    made = ("--model", "user/name", "--prompts_file", prompts_file, "--steps", 1, "--metrics", "is",
            "--num_samples", 1, "--output_dir", tmp_path / "out")  # fmt: skip
    codes = []
    for commit in ("c0ffee", "c0ffee", "decade"):
        snapshot = tmp_path / "snapshots" / commit
        shutil.copytree(pipeline_dir, snapshot, dirs_exist_ok=True)
        monkeypatch.setattr("diffusers.DiffusionPipeline.download", lambda *_, folder=snapshot, **__: folder)
        codes.append(run(*made)[0])
    assert codes[:2] == [0, 0] and "(weights: commit:c0ffee, asked commit:decade)" in codes[2]
    assert [row["model"] for row in rows_in(tmp_path / "out")] == ["user/name commit:c0ffee"]


def test_arguments_that_would_do_nothing(run, batch, pipeline_dir, prompts_file, tmp_path):
    folder, _ = batch
    measured = ("--samples", folder, "--metrics", "is", "--output_dir", tmp_path / "out")
    for option, value in (("num_samples", 2), ("seed", 0), ("height", 8), ("dtype", "auto"), ("revision", "main"),
                          ("sampling_batch_size", 1)):  # fmt: skip
        code, _ = run(*measured, f"--{option}", value)
        assert code == f"error: --{option} must come with --model, for it says how samples are made; leave it out."
    for number in (0, -1, 4):
        code, _ = run(*measured, "--prompts_file", prompts_file, "--num_prompts", number)
        assert code == f"error: --num_prompts must be 1 to the number of prompts in --prompts_file (3), got {number}."
    code, _ = run(*measured, "--captions_from", folder)
    assert code.startswith("error: --captions_from must come with --model and --protocol and without --prompts_file")
    code, _ = run(*measured[:-2])
    assert code.startswith("error: --output_dir must name a folder")
    facts = {"sampler": "DDIMScheduler", "steps": 50, "guidance": 2.0, "model": "mine", "seed": 0}
    (folder / "samples.json").write_text(json.dumps({"asked": {}, "facts": facts}))
    for option, value, right in (
        ("scheduler", "DDPM", "DDIMScheduler"),
        ("steps", 99, 50),
        ("guidance_scale", 3, 2.0),
    ):
        code, _ = run(*measured, f"--{option}", value)
        assert code.startswith(f"error: --{option} must be {right}, as samples.json in {folder} says, got ")
    assert not (tmp_path / "out").exists()
