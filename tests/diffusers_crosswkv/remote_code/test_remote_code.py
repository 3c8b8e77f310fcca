"""Checkpoints carry their code: the same pictures on machines that have never heard of this package."""

import importlib.util
import json
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from diffusers.utils.dynamic_modules_utils import find_pipeline_class, get_relative_imports
from remote import pixels, run_python

from diffusers_crosswkv import DIR7Img2ImgPipeline, DIR7InpaintPipeline, DIR7Pipeline, DIR7UNet2DConditionModel
from diffusers_crosswkv.remote_code import flatten

TRUST = "trust_remote_code=True"
BY_CODE = f"custom_pipeline='pipeline', {TRUST}"
UNEXPECTED = ("Expected types", "might require the following packages", "cannot get type annotation")


@pytest.fixture
def saved(make_pipeline, tmp_path):
    """A saved pipeline and the pictures that it makes."""
    pipeline = make_pipeline()
    pipeline.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved", pixels(pipeline)


@pytest.fixture
def saved_stock_pipeline(make_pipeline, make_unet, tmp_path):
    """A stock Stable Diffusion pipeline that holds our U-Net."""
    ours = make_pipeline()
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4, "sample_size": 16}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(**sizes, **blocks).eval()
    unet = make_unet(in_channels=4, out_channels=4)
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    parts = {"text_encoder": ours.text_encoder, "tokenizer": ours.tokenizer, "scheduler": scheduler}
    unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = StableDiffusionPipeline(vae=vae, unet=unet, **parts, **unused)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "stock")
    return tmp_path / "stock", pixels(pipeline)


PIPELINES = ("pipeline_dir7", "pipeline_dir7_img2img", "pipeline_dir7_inpaint")


@pytest.mark.parametrize("module", ["models.unet_dir7", *(f"pipelines.{name}" for name in PIPELINES)])
def test_generated_files_stand_alone(module, tmp_path):
    text = flatten(f"diffusers_crosswkv.{module}")
    path = tmp_path / "flat.py"
    path.write_text(text.replace("\ndel ", "\n# del "))  # annotations in quotes may name what is taken away at the end
    assert get_relative_imports(path) == []
    assert "import crosswkv_kernels" not in text and "import triton" not in text
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select", "F,E9", path]
    done = subprocess.run(ruff, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("pipeline", [DIR7Pipeline, DIR7Img2ImgPipeline, DIR7InpaintPipeline])
def test_a_pipeline_brings_its_own_code_and_not_the_models(pipeline):
    text = flatten(pipeline.__module__)
    module = types.ModuleType("remote_pipeline")
    exec(compile(text, "pipeline.py", "exec"), vars(module))
    assert find_pipeline_class(module).__name__ == pipeline.__name__
    assert "class DIR7UNet2DConditionModel" not in text
    assert "class PromptState" not in text


def test_a_unet_brings_the_whole_layer():
    text = flatten("diffusers_crosswkv.models.unet_dir7")
    for definition in ("class CrossWKV(", "class PromptState", "def wkv7_chunked(", "def wkv7_reference("):
        assert definition in text
    assert "triton.jit" not in text


def test_code_is_saved_beside_configs(saved):
    folder, _ = saved
    assert (folder / "pipeline.py").read_text() == flatten("diffusers_crosswkv.pipelines.pipeline_dir7")
    assert (folder / "unet/diffusers_crosswkv.py").read_text() == flatten("diffusers_crosswkv.models.unet_dir7")
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "DIR7Pipeline"  # a list would ask those who have the package for their trust
    assert index["unet"] == ["diffusers_crosswkv", "DIR7UNet2DConditionModel"]


def test_somebodys_subclass_is_theirs(make_pipeline, make_unet, tmp_path):
    class Mine(DIR7UNet2DConditionModel):
        pass

    unet = Mine.from_config(make_unet().config)
    unet.save_config(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]
    pipeline = make_pipeline()
    pipeline.register_modules(unet=unet)
    assert pipeline.config.unet == (Mine.__module__, "Mine")


def test_without_the_package_pictures_are_the_same(saved, saved_stock_pipeline, tmp_path):
    folder, expected = saved
    stock, expected_stock = saved_stock_pipeline
    from_image = DIR7Img2ImgPipeline(**DIR7Pipeline.from_pretrained(folder).components)
    from_image.save_pretrained(tmp_path / "from_image")
    expected_from_image = pixels(quiet(from_image), image=torch.zeros(1, 1, 8, 8))
    code = f"""
from diffusers import DiffusionPipeline, StableDiffusionPipeline
try:
    import diffusers_crosswkv
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("the package is there")
try:
    DiffusionPipeline.from_pretrained({str(stock)!r})
except ValueError as error:
    refused = str(error)

pipe = DiffusionPipeline.from_pretrained({str(folder)!r}, {BY_CODE})
first = pixels(pipe)
state = pipe.encode_prompt_state("a handwritten seven")
state.save({str(tmp_path / "seven.safetensors")!r})
state = pipe.unet.prompt_state_class.load({str(tmp_path / "seven.safetensors")!r})
seeded = {{"generator": torch.Generator().manual_seed(0), "num_inference_steps": 2, "output_type": "np"}}
by_state = pipe(prompt_state=state, **seeded)
pipe.save_pretrained({str(tmp_path / "again")!r})
again = pixels(DiffusionPipeline.from_pretrained({str(tmp_path / "again")!r}, {BY_CODE}))
stock = StableDiffusionPipeline.from_pretrained({str(stock)!r}, {TRUST})
stock.save_pretrained({str(tmp_path / "stock_again")!r})
stock_again = DiffusionPipeline.from_pretrained({str(tmp_path / "stock_again")!r}, {TRUST})
from_image = DiffusionPipeline.from_pretrained({str(tmp_path / "from_image")!r}, {BY_CODE})
from_image = pixels(from_image, image=torch.zeros(1, 1, 8, 8))
after = pixels(pipe)  # others have been loaded since, into modules of the same names
late = pipe.encode_prompt_state("a handwritten seven")
assert type(late) is type(state) is pipe.unet.prompt_state_class
seeded["generator"].manual_seed(0)
by_early_state = pipe(prompt_state=state, **seeded).images
seeded["generator"].manual_seed(0)
by_late_state = pipe(prompt_state=late, **seeded).images
results = [first, by_state.images, again, after, by_early_state, by_late_state]
results += [pixels(stock), pixels(stock_again), from_image]
for name, result in enumerate(results):
    numpy.save({str(tmp_path)!r} + f"/{{name}}.npy", result)
print(json.dumps([refused, type(pipe.unet).__module__]))
"""
    (refused, module), stderr = run_python(code, tmp_path / "home", with_package=False)
    assert "trust_remote_code=True" in refused
    assert module.startswith("diffusers_modules.")
    assert not [text for text in UNEXPECTED if text in stderr], stderr
    for name, wanted in enumerate([expected] * 6 + [expected_stock] * 2 + [expected_from_image]):
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), wanted), name
    # what was saved there is ordinary here, no trust needed
    assert np.array_equal(pixels(quiet(DiffusionPipeline.from_pretrained(tmp_path / "again"))), expected)
    reloaded = DiffusionPipeline.from_pretrained(tmp_path / "stock_again", safety_checker=None)
    assert type(reloaded.unet) is DIR7UNet2DConditionModel
    assert np.array_equal(pixels(quiet(reloaded)), expected_stock)
    assert (tmp_path / "again/pipeline.py").read_text() == (folder / "pipeline.py").read_text()


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_package_and_remote_code_live_in_one_process(saved, monkeypatch):
    folder, expected = saved
    spec = importlib.util.spec_from_file_location("remote_unet", folder / "unet/diffusers_crosswkv.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "remote_unet", module)
    spec.loader.exec_module(module)
    remote_unet = module.DIR7UNet2DConditionModel.from_pretrained(folder / "unet")
    pipeline = quiet(DIR7Pipeline.from_pretrained(folder))
    assert np.array_equal(pixels(pipeline), expected)
    pipeline.register_modules(unet=remote_unet)
    assert np.array_equal(pixels(pipeline), expected)
    assert pipeline.config.unet == ("diffusers_crosswkv", "DIR7UNet2DConditionModel")


def test_remote_code_trains(saved, monkeypatch):
    folder, _ = saved
    spec = importlib.util.spec_from_file_location("remote_unet", folder / "unet/diffusers_crosswkv.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "remote_unet", module)
    spec.loader.exec_module(module)
    gradients = []
    for cls in (DIR7UNet2DConditionModel, module.DIR7UNet2DConditionModel):
        unet = cls.from_pretrained(folder / "unet")
        torch.manual_seed(0)
        unet(torch.randn(2, 1, 8, 8), 5, torch.randn(2, 7, 24)).sample.square().mean().backward()
        gradients.append([parameter.grad for parameter in unet.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("load", [DIR7UNet2DConditionModel, DIR7Pipeline, DiffusionPipeline])
def test_weights_that_can_run_code_are_refused(saved, load, caplog):
    folder, _ = saved
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"not read")
    place = folder / "unet" if load is DIR7UNet2DConditionModel else folder
    with pytest.raises(OSError, match=r"no file named diffusion_pytorch_model\.safetensors"):
        load.from_pretrained(place)
