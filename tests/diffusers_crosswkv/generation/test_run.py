import dataclasses
import hashlib
import json

import pytest
from PIL import Image

from diffusers_crosswkv import PromptState
from diffusers_crosswkv.generation import ImageConfig, ModelConfig, compare, generate, make_image, read_record
from diffusers_crosswkv.generation import run as run_module
from diffusers_crosswkv.generation.record import file_hashes

PROMPTS = ("a handwritten seven", "un tres escrito a mano")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def pixels(path):
    with Image.open(path) as image:
        return image.mode, image.size, image.tobytes()


def again(report, index=0, **changes):
    """The run that a record asks for, read back from its file."""
    record = read_record(report.images[index].with_suffix(".json"))
    run = run_module.RunConfig(record.model, (), record.image, report.images[0].parent.with_name("again"))
    if record.image.prompt is not None:
        run = dataclasses.replace(run, prompts=(record.image.prompt,))
    return record, dataclasses.replace(run, **changes)


def test_an_image_and_a_record_per_prompt_and_seed(make_run, tmp_path):
    report = generate(make_run(*PROMPTS, seed=5, num_images_per_prompt=2, negative_prompt="a zero"))
    stems = ["0000-seed5", "0000-seed6", "0001-seed5", "0001-seed6"]
    assert names(tmp_path / "images") == sorted(
        [*(s + e for s in stems for e in (".json", ".png")), "contact-sheet.png"]
    )
    assert report.sheet == tmp_path / "images/contact-sheet.png"
    assert len({pixels(path) for path in report.images}) == 4
    record = json.loads(report.images[3].with_suffix(".json").read_text(encoding="utf-8"))
    assert record["image"] == {
        "prompt": PROMPTS[1],
        "seed": 6,
        "negative_prompt": "a zero",
        "num_inference_steps": 2,
        "guidance_scale": 2.0,
        "guidance_rescale": record["image"]["guidance_rescale"],  # None where the pipeline has no such argument
        "height": 8,
        "width": 8,
        "prompt_state": None,
        "prompt_state_index": None,
    }
    assert record["model"]["dtype"] == "float32"
    assert record["pipeline"] == {"class": "DIR7Pipeline", "scheduler": "DPMSolverMultistepScheduler"}
    assert record["text"]["windows"] == 1
    assert {"torch", "diffusers", "transformers", "diffusers_crosswkv", "pillow"} <= record["environment"].keys()


@pytest.mark.parametrize("scheduler", [None, "euler-ancestral-discrete", "DPMSolverSDEScheduler"])
def test_a_record_makes_the_same_image_alone(make_run, scheduler):
    if scheduler == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    report = generate(make_run(*PROMPTS, seed=5, num_images_per_prompt=2, scheduler=scheduler))
    record, run = again(report, 3)
    remade = generate(run)
    assert pixels(remade.images[0]) == pixels(report.images[3])
    assert compare(record, remade.records[0]) == "the same pixels as recorded"
    assert remade.sheet is None


def test_a_difference_is_explained(make_run, pipeline_dir, make_pipeline):
    report = generate(make_run(PROMPTS[0]))
    record, run = again(report)
    other = generate(dataclasses.replace(run, image=dataclasses.replace(run.image, seed=9)))
    assert compare(record, other.records[0]) == "other settings than recorded: seed was 0, is 9"
    make_pipeline(seed=1).save_pretrained(pipeline_dir)
    changed = generate(dataclasses.replace(run, output_dir=run.output_dir / "changed"))
    assert compare(record, changed.records[0]) == "not the pixels that were recorded; the weights may have changed"
    aged = dataclasses.replace(record, environment=record.environment | {"torch": "1.0"})
    assert "torch was 1.0, is 2" in compare(aged, changed.records[0])


def test_prompt_states_are_saved_read_and_continued(make_run, tmp_path):
    path = tmp_path / "states.safetensors"
    from_text = generate(make_run(*PROMPTS, save_prompt_state=path))
    assert len(PromptState.load(path)) == 2
    from_state = generate(make_run(prompt_state=str(path), output_dir=tmp_path / "from_state"))
    assert [pixels(p) for p in from_state.images] == [pixels(p) for p in from_text.images]
    continued = generate(make_run("in red", prompt_state=str(path), prompt_state_index=1, output_dir=tmp_path / "red"))
    assert pixels(continued.images[0]) != pixels(from_state.images[1])

    for report, index in ((from_state, 1), (continued, 0)):
        record, run = again(report, index)
        remade = generate(dataclasses.replace(run, output_dir=run.output_dir / str(record.image.prompt)))
        assert len(remade.images) == 1
        assert pixels(remade.images[0]) == pixels(report.images[index])


def test_a_changed_prompt_state_is_noticed(make_run, tmp_path):
    path = tmp_path / "state.safetensors"
    generate(make_run(PROMPTS[0], save_prompt_state=path))
    report = generate(make_run(prompt_state=str(path), output_dir=tmp_path / "from_state"))
    record, run = again(report)
    generate(make_run(PROMPTS[1], save_prompt_state=path, output_dir=tmp_path / "other", overwrite=True))
    assert f"{path} was " in compare(record, generate(run).records[0])


def test_the_prompt_state_that_is_read_is_not_overwritten(make_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "state.safetensors"
    generate(make_run(PROMPTS[0], save_prompt_state=path))
    before = path.read_bytes()
    run = make_run(prompt_state=path.name, save_prompt_state=path, output_dir=tmp_path / "again", overwrite=True)
    with pytest.raises(FileExistsError, match="must not be the file that `prompt_state` is read from"):
        generate(run)
    assert path.read_bytes() == before and not run.output_dir.exists()


def test_records_hash_what_was_read(make_run, tmp_path, monkeypatch):
    """Also where the file is another one by the time an image is done."""
    path = tmp_path / "state.safetensors"
    generate(make_run(PROMPTS[0], save_prompt_state=path))
    expected = hashlib.sha256(path.read_bytes()).hexdigest()

    def overwriting(*arguments):
        path.write_bytes(b"another")
        return make_image(*arguments)

    monkeypatch.setattr(run_module, "make_image", overwriting)
    report = generate(make_run(prompt_state=str(path), output_dir=tmp_path / "from_state"))
    assert report.records[0].file_sha256 == {str(path): expected}


def test_files_of_a_folder_of_loras_are_hashed(tmp_path):
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "pytorch_lora_weights.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text("about")
    model = ModelConfig("user/name", loras=(str(folder), "user/lora-of-the-hub"))
    hashes = {str(folder / "pytorch_lora_weights.safetensors"): hashlib.sha256(b"weights").hexdigest()}
    assert file_hashes(model, ImageConfig("a seven")) == hashes


def test_stock_pipelines_too(make_run, stock_pipeline_dir):
    long = PROMPTS[0] + " and a" * 80
    report = generate(make_run(long, model=str(stock_pipeline_dir), scheduler="EulerDiscrete", guidance_rescale=0.5))
    record, run = again(report)
    assert record.pipeline == {"class": "StableDiffusionPipeline", "scheduler": "EulerDiscreteScheduler"}
    assert (record.image.height, record.image.width, record.image.guidance_rescale) == (16, 16, 0.5)
    assert len(report.warnings) == 1
    assert "of them are cut off" in report.warnings[0]
    assert pixels(generate(run).images[0]) == pixels(report.images[0])


def test_nothing_is_overwritten_unasked(make_run, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    generate(make_run(PROMPTS[0]))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match=r"0000-seed0\.png is there already \(2 of 2 files\).*--overwrite"):
        generate(make_run(PROMPTS[1]))
    with pytest.raises(FileExistsError, match="thesis"):
        generate(make_run(PROMPTS[1], output_dir=folder / "thesis.txt" / "images"))
    with pytest.raises(FileExistsError, match="thesis"):
        generate(make_run(PROMPTS[1], output_dir=tmp_path / "new", save_prompt_state=folder / "thesis.txt"))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    generate(make_run(PROMPTS[1], overwrite=True))
    assert (folder / "0000-seed0.png").read_bytes() != before[folder / "0000-seed0.png"]
    assert (folder / "thesis.txt").read_text() == "precious"


def test_a_run_that_stops_keeps_whole_images(make_run, tmp_path, monkeypatch):
    def two_then_stop(pipeline, config, *rest):
        if config.seed == 2:
            raise KeyboardInterrupt
        return make_image(pipeline, config, *rest)

    monkeypatch.setattr(run_module, "make_image", two_then_stop)
    with pytest.raises(KeyboardInterrupt):
        generate(make_run(PROMPTS[0], num_images_per_prompt=4))
    assert names(tmp_path / "images") == ["0000-seed0.json", "0000-seed0.png", "0000-seed1.json", "0000-seed1.png"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prompts": ()}, ValueError, "must be a prompt, a file of prompts or a prompt state, got none"),
        ({"model": "./nowhere"}, FileNotFoundError, "There is no folder ./nowhere"),
        ({"model": "a model"}, ValueError, "a Hub id such as 'user/name', got 'a model'"),
        ({"seed": -1}, ValueError, "Seeds must be 0 to 4294967295, got -1"),
        ({"seed": 2**32 - 1, "num_images_per_prompt": 2}, ValueError, "the last image would have 4294967296"),
        ({"num_images_per_prompt": 0}, ValueError, "`num_images_per_prompt` must be at least 1, got 0"),
        ({"num_inference_steps": 0}, ValueError, "`num_inference_steps` must be at least 1, got 0"),
        ({"height": -8}, ValueError, "`height` must be at least 1, got -8"),
        ({"guidance_scale": float("nan")}, ValueError, "`guidance_scale` must be finite, got nan"),
        ({"guidance_rescale": 2.0}, ValueError, "`guidance_rescale` must be 0 to 1, got 2.0"),
        ({"dtype": "float8"}, ValueError, "`dtype` must be one of auto, float32"),
        ({"device": "gpu"}, ValueError, "`device` must be a device of torch or 'auto', got 'gpu'"),
        (
            {"scheduler": "EulerDiscret"},
            ValueError,
            "no scheduler 'EulerDiscret'; did you mean EulerDiscrete",
        ),
        (
            {"scheduler": "FlowMatchEulerDiscrete"},
            ValueError,
            "does not go with this pipeline; these do: DDIM",
        ),
        ({"prompts": ("gr\udcfcn",)}, ValueError, "`prompt` must be valid Unicode"),
        ({"negative_prompt": "gr\udcfcn"}, ValueError, "`negative_prompt` must be valid Unicode"),
        ({"loras": ("lost.safetensors",)}, FileNotFoundError, "There is no LoRA at lost.safetensors"),
        ({"lora_scales": (1.0,)}, ValueError, "`lora_scales` must be one per LoRA or none, got 1 for 0"),
        ({"prompt_state": "lost.safetensors"}, FileNotFoundError, "There is no prompt state at lost.safetensors"),
    ],
)
def test_errors_come_before_anything_is_written(make_run, tmp_path, changes, error, message):
    run = make_run(*changes.pop("prompts", (PROMPTS[0],)), **changes)
    with pytest.raises(error, match=message):
        generate(run)
    assert names(tmp_path) == ["pipeline"]


def test_errors_of_the_pipeline_come_before_anything_is_written(make_run, stock_pipeline_dir, tmp_path):
    with pytest.raises(ValueError, match="takes no `prompt_state`"):
        generate(make_run(PROMPTS[0], model=str(stock_pipeline_dir), save_prompt_state=tmp_path / "x.safetensors"))
    assert names(tmp_path) == ["pipeline", "stock"]


def test_prompts_and_states_must_go_together(make_run, tmp_path):
    path = tmp_path / "states.safetensors"
    generate(make_run(*PROMPTS, save_prompt_state=path))
    with pytest.raises(ValueError, match="got 3 prompts and 2 states; choose one by `prompt_state_index`"):
        generate(make_run("a", "b", "c", prompt_state=str(path), output_dir=tmp_path / "x"))
    with pytest.raises(ValueError, match="`prompt_state_index` must be 0 to 1, the file's last state, got 2"):
        generate(make_run("a", prompt_state=str(path), prompt_state_index=2, output_dir=tmp_path / "x"))
