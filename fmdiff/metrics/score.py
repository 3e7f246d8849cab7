"""The Inception Score: how sure a classifier is of each image, and how varied the images are."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fmdiff.errors import FmdiffError


class Score(NamedTuple):
    """An Inception Score over splits of the images."""

    mean: float
    std: float  # over the splits, not a standard error of the mean
    splits: int


def inception_score(logits: Tensor, splits: int = 10, seed: int | None = 2020) -> Score:
    """IS = exp( mean_i KL(p(y|x_i) || p(y)) ),  p(y) = mean_i p(y|x_i),  1 <= IS <= K.

    p(y|x) is the softmax of logits (n, K). The images are shuffled by NumPy's RandomState(seed),
    as in torch-fidelity (seed=None keeps their order), and cut into `splits` parts. The parts'
    scores are averaged (Salimans et al., 2016). A part of n/splits images cannot score above
    n/splits. Raises FmdiffError for fewer images than splits.
    """
    n = len(logits)
    if not 1 <= splits <= n:
        raise FmdiffError(f"n={n}: an Inception Score in {splits} splits needs n >= {splits}")
    if seed is not None:
        logits = logits[torch.from_numpy(np.random.RandomState(seed).permutation(n))]
    log_p = logits.double().log_softmax(1)
    scores = []
    for i in range(splits):
        part = log_p[i * n // splits : (i + 1) * n // splits]
        p = part.exp()
        # a class of probability 0 adds 0, not 0 * -inf
        terms = torch.where(p > 0, p * (part - p.mean(0).log()), 0)
        scores.append(terms.sum(1).mean().exp())
    values = torch.stack(scores)
    return Score(values.mean().item(), values.std(correction=0).item(), splits)
