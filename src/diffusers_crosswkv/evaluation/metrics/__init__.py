from .clip_score import clip_score
from .config import EvaluationConfig
from .frechet import Gaussian, frechet_distance, gaussian_of
from .inception_score import inception_score
from .kernel_distances import cmmd, kid
from .manifolds import precision_recall
from .npz_images import open_images
from .prompts import read_image_prompts, write_image_prompts
from .protocol_prompts import protocol_prompts
from .protocols import ADM_METRICS, METRICS, PAPER_METRICS, PROTOCOLS, Protocol, SampleFacts, fill_in
from .run import check_weights, evaluate
from .sampling import SamplingConfig, make_samples, pipeline_identity, read_facts

__all__ = [
    "ADM_METRICS",
    "METRICS",
    "PAPER_METRICS",
    "PROTOCOLS",
    "EvaluationConfig",
    "Gaussian",
    "Protocol",
    "SampleFacts",
    "SamplingConfig",
    "check_weights",
    "clip_score",
    "cmmd",
    "evaluate",
    "fill_in",
    "frechet_distance",
    "gaussian_of",
    "inception_score",
    "kid",
    "make_samples",
    "open_images",
    "pipeline_identity",
    "precision_recall",
    "protocol_prompts",
    "read_facts",
    "read_image_prompts",
    "write_image_prompts",
]
