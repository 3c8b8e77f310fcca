from unittest.mock import Mock

import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler
from huggingface_hub.errors import RepositoryNotFoundError

from diffusers_crosswkv.generation import ImageConfig, ModelConfig, load_pipeline, make_image
from diffusers_crosswkv.generation import loading as loading_module
from diffusers_crosswkv.generation.loading import scheduler_class


def test_open_choices_are_filled_in(pipeline_dir):
    pipeline, config = load_pipeline(ModelConfig(str(pipeline_dir), device="cpu", scheduler="euler-discrete"))
    assert type(pipeline.scheduler) is EulerDiscreteScheduler
    assert config == ModelConfig(
        str(pipeline_dir), device="cpu", dtype="float32", scheduler="EulerDiscreteScheduler"
    )  # all that a record needs
    half, config = load_pipeline(ModelConfig(str(pipeline_dir), dtype="bfloat16", device="cpu"))
    assert half.unet.dtype == torch.bfloat16
    assert config.dtype == "bfloat16"


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "eulerdiscrete", "Euler-Discrete", "euler_discrete"])
def test_schedulers_by_name(name):
    assert scheduler_class(name) is EulerDiscreteScheduler


def test_a_folder_that_holds_no_pipeline(pipeline_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no model_index\.json\. There is one in .*pipeline\."):
        load_pipeline(ModelConfig(str(tmp_path)))
    with pytest.raises(FileNotFoundError, match=r"`pipeline\.save_pretrained"):
        load_pipeline(ModelConfig(str(pipeline_dir / "unet")))


def test_pickled_weights_are_refused(pipeline_dir):
    weights = pipeline_dir / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(OSError, match="safetensors"):
        load_pipeline(ModelConfig(str(pipeline_dir)))


def test_pipelines_that_need_an_image_are_refused(stock_pipeline_dir):
    index = stock_pipeline_dir / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"))
    with pytest.raises(ValueError, match="StableDiffusionImg2ImgPipeline makes no images from text alone"):
        load_pipeline(ModelConfig(str(stock_pipeline_dir)))


def test_offline():
    message = r"user/name is neither a folder nor in the Hub's cache.*offline mode is enabled.*`hf download`"
    with pytest.raises(OSError, match=message):
        load_pipeline(ModelConfig("user/name"))


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (ConnectionRefusedError("nobody there"), r"neither a folder .* the Hub cannot be reached \(nobody there\)"),
        (
            RepositoryNotFoundError("404", response=Mock(headers={})),
            "The Hub has no user/name at revision v1 that you may read",
        ),
        (None, "no safetensors weights"),  # the Hub was reached, and Diffusers says what is missing
    ],
)
def test_what_the_hub_answers(cause, message, monkeypatch):
    def download(*_, **__):
        raise OSError("no safetensors weights") from cause

    monkeypatch.setattr(DiffusionPipeline, "download", download)
    with pytest.raises(OSError, match=message):
        load_pipeline(ModelConfig("user/name", revision="v1"))


def test_the_commit_of_a_hub_model_is_kept(pipeline_dir, monkeypatch):
    snapshot = pipeline_dir.rename(pipeline_dir.with_name("0123abcd"))
    asked = []

    def download(model, **arguments):
        asked.append((model, arguments))
        return str(snapshot)

    monkeypatch.setattr(DiffusionPipeline, "download", download)
    config = load_pipeline(ModelConfig("user/name", revision="main", variant=None, device="cpu"))[1]
    assert asked == [("user/name", {"revision": "main", "variant": None, "use_safetensors": True})]
    assert (config.model, config.revision) == ("user/name", "0123abcd")


def test_a_device_that_is_not_here():
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    with pytest.raises(ValueError, match="There is no device cuda here; use 'auto', which takes cpu"):
        loading_module.choose_device("cuda")
    assert loading_module.choose_device("auto") == torch.device("cpu")


@pytest.mark.filterwarnings("ignore:Already found a .peft_config. attribute:UserWarning")  # two LoRAs are meant
def test_loras(stock_pipeline_dir, pipeline_dir, tmp_path):
    peft = pytest.importorskip("peft")
    pipeline = load_pipeline(ModelConfig(str(stock_pipeline_dir), device="cpu"))[0]
    pipeline.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    pipeline.save_lora_weights(tmp_path, peft.get_peft_model_state_dict(pipeline.unet), weight_name="x.safetensors")

    def image(*scales):
        loras = (str(tmp_path / "x.safetensors"),) * len(scales)
        model = ModelConfig(str(stock_pipeline_dir), device="cpu", loras=loras, lora_scales=scales)
        settings = ImageConfig("a handwritten seven", num_inference_steps=2)
        return make_image(load_pipeline(model)[0], settings).image.tobytes()

    plain, full, none = image(), image(1.0), image(0.0)
    assert none == plain
    assert full != plain
    assert image(0.5, 0.5) not in (plain, image(0.5))


def test_a_file_that_is_no_lora(stock_pipeline_dir, tmp_path):
    weights = stock_pipeline_dir / "vae/diffusion_pytorch_model.safetensors"
    with pytest.raises(ValueError, match="LoRA"):
        load_pipeline(ModelConfig(str(stock_pipeline_dir), device="cpu", loras=(str(weights),)))
