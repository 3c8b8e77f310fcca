from .frechet import Gaussian, frechet_distance, gaussian_of
from .image_sets import open_images
from .inception_score import inception_score
from .kernel_distances import cmmd, kid
from .manifolds import precision_recall
from .protocols import ADM_METRICS, METRICS, PROTOCOLS, Protocol, SampleFacts
from .run import EvaluationConfig, check_weights, evaluate
from .sampling import SamplingConfig, make_samples, read_facts

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
    "precision_recall",
    "read_facts",
]
