from .checkpoint_files import LIBRARY, PIPELINE_FILE, UNET_FILE, write_remote_code
from .flat_module import flatten

__all__ = ["LIBRARY", "PIPELINE_FILE", "UNET_FILE", "flatten", "write_remote_code"]
