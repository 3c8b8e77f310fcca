"""From a saved pipeline to a repository on the Hub: its model card, what is checked, the upload."""

from .adapter import SavedAdapter, read_saved_adapter
from .card import make_model_card
from .facts import FROM_SCRATCH, Metric, ModelFacts, load_facts, save_facts
from .folder import SavedPipeline, read_saved_pipeline
from .push import Pushed, check_may_push, push_to_hub

__all__ = [
    "FROM_SCRATCH",
    "Metric",
    "ModelFacts",
    "Pushed",
    "SavedAdapter",
    "SavedPipeline",
    "check_may_push",
    "load_facts",
    "make_model_card",
    "push_to_hub",
    "read_saved_adapter",
    "read_saved_pipeline",
    "save_facts",
]
