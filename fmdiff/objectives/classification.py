"""Classification of noisy data, for guidance=classifier."""

import torch.nn.functional as F
from torch import Tensor, nn

from fmdiff.classifier import Classifier
from fmdiff.errors import FmdiffError
from fmdiff.path import Path
from fmdiff.source import Normal, Source


class Classification:
    """Cross entropy -log p(y | x_t), x_t = alpha x + beta eps, at every time of the path.

    Its minimiser is the posterior p(y | x_t) (Dhariwal & Nichol 2021, arXiv:2105.05233, section
    4). Takes a network with `logits`; no label is dropped.

    Raises FmdiffError for t_eps out of range.
    """

    logits = True  # of the networks it trains; the others predict a quantity of the path

    def __init__(
        self,
        path: Path,
        data_std: float,
        t_eps: float,
        source: Source | None = None,
        coupled: bool = False,
    ) -> None:
        if not 0 <= t_eps < 0.5:
            raise FmdiffError(f"objective.t_eps={t_eps} must lie in [0, 0.5)")
        self.path, self.data_std, self.t_eps = path, data_std, t_eps
        self.source, self.coupled = source or Normal(), coupled

    def field(self, net: nn.Module, shape, classes: int = 0, y: Tensor | None = None):
        """The network as a classifier."""
        return Classifier(net, self.path, self.data_std, shape, classes)

    def time(self, u: Tensor) -> Tensor:
        """Draws u in [0, 1] of a time law, shrunk into [t_eps, 1 - t_eps]."""
        return self.t_eps + (1 - 2 * self.t_eps) * u

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor | None, eps: Tensor, t: Tensor):
        """The loss of each example (B,): x, eps (B, *shape), y, t (B,)."""
        assert y is not None
        logits = self.field(net, x.shape[1:]).logits(self.path.mix(x, eps, t), t)
        return F.cross_entropy(logits, y, reduction="none")
