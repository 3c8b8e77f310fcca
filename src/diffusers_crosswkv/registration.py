"""Make Diffusers find our classes: `import diffusers_crosswkv` is all that `DiffusionPipeline.from_pretrained` needs.

Diffusers looks a pipeline class up in its own namespace, and the library named in `model_index.json` in a table. It
imports no library that is not in the table and has no plugin entry points, so importing this package writes both.
"""

from types import ModuleType

import diffusers
from diffusers.loaders import peft
from diffusers.pipelines import auto_pipeline, pipeline_loading_utils


def register(package: ModuleType) -> None:
    """Register the classes of `package`, diffusers_crosswkv itself; a second call changes nothing."""
    name = package.__name__
    pipelines = (package.DIR7Pipeline, package.DIR7Img2ImgPipeline, package.DIR7InpaintPipeline)
    for cls in (*pipelines, package.DIR7UNet2DConditionModel):
        setattr(diffusers, cls.__name__, cls)
    setattr(diffusers.pipelines, name, package)
    for cls in pipelines:
        setattr(diffusers.pipelines, cls.__name__, cls)
    loadable = {"ModelMixin": ["save_pretrained", "from_pretrained"]}
    pipeline_loading_utils.LOADABLE_CLASSES[name] = loadable
    pipeline_loading_utils.ALL_IMPORTABLE_CLASSES.update(loadable)
    auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING["dir7"] = package.DIR7Pipeline
    auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING["dir7"] = package.DIR7Img2ImgPipeline
    auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING["dir7"] = package.DIR7InpaintPipeline
    unet_scale = peft._SET_ADAPTER_SCALE_FN_MAPPING["UNet2DConditionModel"]
    peft._SET_ADAPTER_SCALE_FN_MAPPING["DIR7UNet2DConditionModel"] = unet_scale
