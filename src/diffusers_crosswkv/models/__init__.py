from .attention_processor import CrossWKVAttnProcessor
from .crosswkv import CrossWKV
from .prompt_state import PromptState
from .unet_dir7 import DIR7UNet2DConditionModel

__all__ = ["CrossWKV", "CrossWKVAttnProcessor", "DIR7UNet2DConditionModel", "PromptState"]
