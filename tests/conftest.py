"""What tests of several rooms share. Diffusers and Hypothesis may be missing: `make gpu-test` needs neither."""

import copy
import os
from contextlib import suppress

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# kernels run on CPU tensors; read once, when Triton is imported
os.environ.setdefault("TRITON_INTERPRET", "0" if "CROSSWKV_TEST_DEVICE" in os.environ else "1")

import interpreter
import pytest
import torch
from unets import SMALL_UNET

with suppress(ImportError):
    from hypothesis import settings

    settings.register_profile("crosswkv", deadline=None, max_examples=20, derandomize=True)
    settings.load_profile("crosswkv")
torch.set_num_threads(1)
if os.environ["TRITON_INTERPRET"] == "1":
    interpreter.install()
if "CROSSWKV_TEST_DEVICE" in os.environ:  # of tests/crosswkv_kernels: `make gpu-test`
    torch.set_default_device(os.environ["CROSSWKV_TEST_DEVICE"])


def pytest_collection_modifyitems(items):
    """The file that takes minutes first: started last, it would run while the other processes are done."""
    items.sort(key=lambda item: item.path.name != "test_trained_digits.py")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(params=["state", "prefix", "paper"])
def fusion(request):
    return request.param


@pytest.fixture(params=["state", "prefix"])
def state_fusion(request):
    """The fusions that have prompt states."""
    return request.param


@pytest.fixture
def make_unet():
    """Small U-Nets with every parameter away from its start, so that nothing is neutral by accident."""
    from diffusers_crosswkv import DIR7UNet2DConditionModel

    def make(seed=0, randomize=True, **config):
        torch.manual_seed(seed)
        unet = DIR7UNet2DConditionModel(**{**SMALL_UNET, **config}).eval()
        if randomize:
            for parameter in unet.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
        return unet

    return make


@pytest.fixture(scope="session")
def tokenizer():
    from diffusers_crosswkv.data.digits import all_captions
    from diffusers_crosswkv.training.text import fit_tokenizer

    return fit_tokenizer(all_captions())


@pytest.fixture
def make_pipeline(make_unet, tokenizer):
    """A small pipeline with random weights."""
    from diffusers import DPMSolverMultistepScheduler

    from diffusers_crosswkv import DIR7Pipeline
    from diffusers_crosswkv.training.text import make_text_encoder

    def make(scheduler=None, seed=0, **config):
        torch.manual_seed(seed)
        text_encoder = make_text_encoder(tokenizer, 24, num_layers=1).eval()
        scheduler = scheduler or DPMSolverMultistepScheduler(thresholding=True, sample_max_value=1.0)
        own = copy.deepcopy(tokenizer)  # textual inversion changes it
        pipeline = DIR7Pipeline(None, text_encoder, own, make_unet(seed, **config), scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


@pytest.fixture
def noise_schedule():
    from diffusers import DDPMScheduler

    return DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
