"""From settings to a result, for everything that can be trained, interrupted or not."""

import io
import json
import signal
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from shards import write_shards

from diffusers_crosswkv import PromptState
from diffusers_crosswkv.finetuning import finetune
from diffusers_crosswkv.finetuning.preparation import prepare
from diffusers_crosswkv.finetuning.records import read_metrics
from diffusers_crosswkv.finetuning.run import claim
from diffusers_crosswkv.training import Callback, TrainingInterrupted
from diffusers_crosswkv.training.sharding import make_accelerator

WATCHED = {"report_to": ("none",), "validation_prompts": ("a seven", "数字三")}
OF_TIME = ("seconds", "images_per_second")


def draw(pipeline, **arguments):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    call = {"num_inference_steps": 2, "generator": generator, "output_type": "pt", **arguments}
    return pipeline("a seven", **call).images


def lines_of(folder):
    """What `metrics.jsonl` says of anything but time."""
    return [
        {k: v for k, v in line.items() if k not in OF_TIME} for line in read_metrics(Path(folder, "metrics.jsonl"))
    ]


def run(settings):
    return finetune(settings, progress=False)


@pytest.mark.parametrize("weights", ["all", "attn2", "lora", "state"])
def test_every_kind_of_weights(weights, make_settings, pipeline_dir, tmp_path, capsys):
    report = run(make_settings(weights=weights, **WATCHED))
    folder = tmp_path / "run"
    base, result = DiffusionPipeline.from_pretrained(pipeline_dir), str(report.result)
    before = draw(base)
    if weights == "lora":
        assert report.result == folder / "pytorch_lora_weights.safetensors"
        base.load_lora_weights(str(folder))
        after = draw(base)
    elif weights == "state":
        assert report.result == folder / "prompt_state.safetensors"
        after = draw(base, prompt_state=PromptState.load(result))
    else:
        assert report.result == folder / "pipeline"
        after = draw(DiffusionPipeline.from_pretrained(result))
    assert after.shape == before.shape and not torch.equal(after, before)
    assert f"starting from {pipeline_dir}" in capsys.readouterr().out
    assert report.example.startswith("python scripts/generate.py --model ") and result in report.example
    lines = lines_of(folder)
    assert [(line["step"], "loss" in line) for line in lines] == [
        (0, False), (1, True), (2, True), (2, False), (3, True), (4, True), (4, False)
    ]  # fmt: skip
    assert lines[0]["validation_loss"] > lines[-1]["validation_loss"]
    assert sorted(path.name for path in (folder / "validation").iterdir()) == [
        f"step-{step:06d}.png" for step in (0, 2, 4)
    ]
    first, last = (Path(folder, "validation", f"step-{step:06d}.png").read_bytes() for step in (0, 4))
    assert first != last
    facts = json.loads((folder / "facts.json").read_text())
    assert (facts["steps"], facts["batch_size"], facts["example_prompt"]) == (4, 4, "a seven")
    assert facts["data"] == "digits, 1,793 images, 8 px"
    with Image.open(folder / "loss.png") as picture:
        assert picture.width > 600
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


class StopAfter(Callback):
    def __init__(self, step):
        self.last = step

    def step(self, run, metrics):
        if metrics.step == self.last:
            signal.raise_signal(signal.SIGINT)


def test_interrupted_and_straight_are_the_same(make_settings, tmp_path, monkeypatch):
    straight = make_settings(output_dir=str(tmp_path / "straight"), max_train_steps=5, **WATCHED)
    report = run(straight)
    interrupted = make_settings(output_dir=str(tmp_path / "interrupted"), max_train_steps=5, **WATCHED)
    from diffusers_crosswkv.finetuning import run as module

    with monkeypatch.context() as patch:
        train = module.train
        patch.setattr(module, "train", lambda *a, callbacks, **k: train(*a, callbacks=(*callbacks, StopAfter(3)), **k))
        with pytest.raises(TrainingInterrupted, match="Stopped after 3 of 5 steps"):
            run(interrupted)
    assert not (tmp_path / "interrupted/pipeline").exists()
    with (tmp_path / "interrupted/metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 7.0}\n{"step": 5, "lo')  # of steps that a killed process made
    again = run(interrupted)
    assert lines_of(tmp_path / "interrupted") == lines_of(tmp_path / "straight")
    for name in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert (report.result / name).read_bytes() == (again.result / name).read_bytes()
    pictures = [
        sorted((path.name, path.read_bytes()) for path in (tmp_path / folder / "validation").iterdir())
        for folder in ("straight", "interrupted")
    ]
    assert [name for name, _ in pictures[0]] == [name for name, _ in pictures[1]]
    titles_differ = 40  # the sheet names its run
    for (_, one), (_, other) in zip(*pictures, strict=True):
        one, other = (Image.open(io.BytesIO(content)) for content in (one, other))
        assert (
            one.crop((0, titles_differ, *one.size)).tobytes() == other.crop((0, titles_differ, *other.size)).tobytes()
        )


def test_a_finished_run_is_saved_again_and_other_settings_are_refused(make_settings, tmp_path, pipeline_dir):
    settings = make_settings(max_train_steps=2, report_to=("none",))
    first = run(settings)
    weights = first.result / "unet/diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    again = run(settings)
    assert weights.read_bytes() == before
    assert (again.steps, again.seconds) == (first.steps, first.seconds)
    with pytest.raises(ValueError, match=r"other settings, {'learning_rate': 0\.001} instead"):
        run(make_settings(max_train_steps=2, learning_rate=0.01))
    with pytest.raises(ValueError, match=r"{'flip': False} instead of {'flip': True}; use the same .*, or use"):
        run(make_settings(max_train_steps=2, flip=True))
    longer = run(make_settings(max_train_steps=3, learning_rate=0.01, resume_with_new_settings=True))
    assert longer.steps == 3
    assert [line["step"] for line in lines_of(settings.training.output_dir) if "loss" in line] == [1, 2, 3]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/draft.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="holds something else"):
        run(make_settings(output_dir=str(tmp_path / "thesis")))


@pytest.mark.parametrize("weights", ["lora", "state"])
@pytest.mark.parametrize(
    "setting", [{"prediction_type": "v_prediction"}, {"zero_terminal_snr": True}, {"prepend_endoftext": False}]
)
def test_what_fits_no_pipeline_is_refused(make_settings, weights, setting, tmp_path):
    own = {"prepend_endoftext": True}  # saying what holds is allowed
    message = f"With `weights` {weights}, `{next(iter(setting))}` must be that of"
    with pytest.raises(ValueError, match=message):
        run(make_settings(weights=weights, **own | setting))
    assert not (tmp_path / "run").exists()


def test_adapters_need_a_model_that_is_saved(make_settings, stock_dir):
    with pytest.raises(ValueError, match="an untrained U-Net would be made first"):
        run(make_settings(from_scratch="dir7_tiny", text_encoder=stock_dir, vae=stock_dir, weights="lora"))
    with pytest.raises(ValueError, match="`train_text_encoder` needs `weights` all, got attn2"):
        run(make_settings(weights="attn2", train_text_encoder=True))


def test_another_size_is_what_the_result_draws(make_settings, tmp_path):
    settings = {"data": "scenes:16", "max_train_steps": 1, "report_to": ("none",), "validation_examples": 0}
    whole = run(make_settings(from_scratch="dir7_tiny", **settings))
    assert "--height" not in whole.example
    of_others = settings | {"model": str(whole.result), "data": "scenes:32"}
    larger = run(make_settings(**of_others, output_dir=str(tmp_path / "larger")))
    assert draw(DiffusionPipeline.from_pretrained(larger.result)).shape == (1, 3, 32, 32)
    lora = run(make_settings(**of_others, weights="lora", output_dir=str(tmp_path / "lora")))
    assert "--height 32 --width 32" in lora.example


def test_the_size_must_be_known(make_settings, make_pipeline, tmp_path):
    make_pipeline(sample_size=None, in_channels=3, out_channels=3).save_pretrained(tmp_path / "any")
    settings = {"model": str(tmp_path / "any"), "data": str(tmp_path)}
    with pytest.raises(ValueError, match=r"`resolution` must be given: the U-Net of .* has no `sample_size`"):
        run(make_settings(**settings))


def test_an_image_folder(make_settings, image_folder, tmp_path):
    settings = make_settings(
        data=image_folder, from_scratch="dir7_tiny", resolution=16, validation_examples=2, report_to=("none",)
    )
    report = run(settings)
    text = str(report)
    assert "2 images left out, all named in skipped.txt:" in text
    assert "has no caption" in text and "silent.png" in text and "broken.png" in text
    assert (tmp_path / "run/skipped.txt").read_text().count("\n") == 2
    pipeline = DiffusionPipeline.from_pretrained(report.result)
    assert draw(pipeline).shape == (1, 3, 16, 16)
    assert "photos, 10 images, 16 px" in (tmp_path / "run/facts.json").read_text()


def test_too_many_images_without_a_caption(make_settings, image_folder, tmp_path):
    for name in ("00.txt", "01.txt"):
        Path(image_folder, name).write_text("")
    settings = {"data": image_folder, "from_scratch": "dir7_tiny", "resolution": 16, "report_to": ("none",)}
    with pytest.raises(ValueError, match=r"At most 20% .* but 4 of 14 are, .*has an empty caption \(2\)"):
        run(make_settings(**settings))
    assert not (tmp_path / "run").exists()


def test_skipped_by_another_process(make_settings, image_folder, tmp_path, monkeypatch):
    from diffusers_crosswkv.finetuning import run as module

    monkeypatch.setattr(module, "gather_object", lambda mine: [*mine, *mine, ("other.png", "is cut off")])
    report = run(make_settings(data=image_folder, model=None, from_scratch="dir7_tiny", resolution=16,
                               max_train_steps=1, report_to=("none",)))  # fmt: skip
    assert len(report.skipped) == 3
    assert (tmp_path / "run/skipped.txt").read_text().count("other.png\tis cut off") == 1


def test_held_out_by_itself(make_settings, image_folder):
    settings = make_settings(
        from_scratch="dir7_tiny", validation_examples=None, max_train_steps=1, report_to=("none",)
    )
    run(settings)
    lines = lines_of(settings.training.output_dir)
    assert "validation_loss" in lines[0]  # 32 of 1,797
    few = make_settings(
        data=image_folder,
        from_scratch="dir7_tiny",
        resolution=16,
        validation_examples=None,
        max_train_steps=1,
        output_dir=settings.training.output_dir + "-few",
        report_to=("none",),
    )
    run(few)
    assert all("validation_loss" not in line for line in lines_of(few.training.output_dir))  # none of 12


@pytest.mark.parametrize(
    ("sizes", "held_out"),
    [([12], 0), ([12, 12], 1), ([3] * 20, 3), ([40], 32)],  # a twentieth at most, unless a shard has enough
)
def test_held_out_of_a_stream_by_itself(sizes, held_out, make_settings, tmp_path):
    pytest.importorskip("datasets")
    settings = make_settings(
        data=str(write_shards(tmp_path / "shards", sizes)),
        from_scratch="dir7_tiny",
        resolution=16,
        streaming=True,
        validation_examples=None,
    )
    prepared = prepare(settings, make_accelerator(settings.training), progress=False)
    assert prepared.data_config.holdout_examples == len(prepared.data.holdout) == held_out
    prepared.data.close()


def test_stable_diffusion_with_caches(make_settings, image_folder, stock_dir, tmp_path, capsys):
    settings = {"data": image_folder, "model": stock_dir, "weights": "attn2", "validation_examples": 2}
    report = run(make_settings(**settings, **WATCHED, zero_terminal_snr=True, prediction_type="v_prediction"))
    assert "has softmax cross-attention: converted to state fusion" in capsys.readouterr().out
    pipeline = DiffusionPipeline.from_pretrained(report.result)
    assert pipeline.scheduler.config.rescale_betas_zero_snr
    assert draw(pipeline).shape == (1, 3, 16, 16)
    cached = list((tmp_path / "caches").rglob("*.safetensors"))
    assert len(cached) >= 12
    draws_at_random = make_settings(
        **settings, output_dir=str(tmp_path / "random"), crop="random", cache_dir=str(tmp_path / "other"),
        report_to=("none",), max_train_steps=1,
    )  # fmt: skip
    run(draws_at_random)
    assert not list((tmp_path / "other").rglob("*.safetensors"))


def test_a_stream_that_would_be_another_one_is_refused(make_settings):
    stream = {"data": "shards/{0..3}.tar", "streaming": True, "validation_examples": 4}
    claim(make_settings(**stream))
    make_settings().training.checkpoints_dir.joinpath("checkpoint-00000002").mkdir(parents=True)
    changes = {
        "stream_block": 8, "validation_examples": 2, "caption_column": "txt", "image_column": "png",
        "data_split": "test", "data_config": "small", "data_revision": "v2",
    }  # fmt: skip
    for name, value in changes.items():
        with pytest.raises(ValueError, match=f"other settings, .*instead of {{'{name}': {value!r}}}"):
            claim(make_settings(**{**stream, name: value}))
    with pytest.raises(ValueError, match="'streaming': True"):
        claim(make_settings(**{**stream, "streaming": False}))
    claim(make_settings(**stream))


@pytest.mark.parametrize("weights", ["lora", "state"])
def test_adapters_of_a_conversion_are_refused(weights, make_settings, image_folder, stock_dir, tmp_path):
    settings = make_settings(data=image_folder, model=stock_dir, weights=weights, report_to=("none",))
    with pytest.raises(ValueError, match=f"--weights attn2 or all first, .* with --weights {weights}"):
        run(settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": "attn2", "from_scratch": "dir7_tiny"}, "A new text encoder must be trained"),
        ({"report_to": ("wandb",)}, "`--report_to wandb` needs the package wandb"),
        ({"resolution": 9}, "`resolution` must be a multiple of 2"),
        ({"prediction_type": "flow", "min_snr_gamma": 5.0}, "`min_snr_gamma` is for DDPM-like schedules"),
    ],
)
def test_what_does_not_fit_is_found_before_a_step(settings, message, make_settings, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers_crosswkv.finetuning.records.get_available_trackers", list)
    settings = {"report_to": ("none",), **settings}
    with pytest.raises((ValueError, ModuleNotFoundError)) as error:
        run(make_settings(**settings))
    assert message in str(error.value)
    assert not (tmp_path / "run/metrics.jsonl").exists()
