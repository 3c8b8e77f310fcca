from .config import EvaluationConfig
from .frechet import Gaussian, frechet_distance, gaussian_of
from .inception_score import inception_score
from .kernel_distances import cmmd, kid
from .manifolds import precision_recall
from .npz_images import open_images
from .prompts import read_image_prompts
from .protocols import ADM_METRICS, METRICS, PROTOCOLS, Protocol, SampleFacts
from .run import check_weights, evaluate
from .sampling import SamplingConfig, make_samples, pipeline_identity, read_facts

__all__ = [
    "ADM_METRICS",
    "METRICS",
    "PROTOCOLS",
    "EvaluationConfig",
    "Gaussian",
    "Protocol",
    "SampleFacts",
    "SamplingConfig",
    "check_weights",
    "cmmd",
    "evaluate",
    "frechet_distance",
    "gaussian_of",
    "inception_score",
    "kid",
    "make_samples",
    "open_images",
    "pipeline_identity",
    "precision_recall",
    "read_facts",
    "read_image_prompts",
]
