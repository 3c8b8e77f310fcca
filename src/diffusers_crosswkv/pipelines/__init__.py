from .pipeline_dir7 import DIR7Pipeline
from .pipeline_dir7_img2img import DIR7Img2ImgPipeline
from .pipeline_dir7_inpaint import DIR7InpaintPipeline

__all__ = ["DIR7Img2ImgPipeline", "DIR7InpaintPipeline", "DIR7Pipeline"]
