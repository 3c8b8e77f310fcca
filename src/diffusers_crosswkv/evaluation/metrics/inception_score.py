"""The Inception score (Salimans et al., 2016, arXiv:1606.03498) as the ADM suite splits it."""

import torch

SPLIT_SIZE = 5000


def inception_score(logits: torch.Tensor, split_size: int = SPLIT_SIZE) -> float:
    """exp of the mean KL divergence between an image's classes and those of its split; the mean over splits.

    ADM splits the images in their order into runs of 5,000, and the last run may be shorter. torch-fidelity splits
    into 10 parts after a shuffle: equal only if it is told `splits=N / 5000, shuffle=False` and 5,000 divides N, which
    is why it is not called here. Both leave out the bias of Inception's last layer. ADM takes the logarithm of float32
    probabilities, which is NaN for one that underflows; here logarithms are taken in float64.

    Args:
        logits: `[N, 1008]`, in the order of the images.
    """
    scores = []
    for part in logits.double().split(split_size):
        log_p = part.log_softmax(1)
        log_q = log_p.logsumexp(0) - torch.tensor(len(part), dtype=torch.float64).log()
        scores.append((log_p.exp() * (log_p - log_q)).sum(1).mean().exp())
    return float(torch.stack(scores).mean())
