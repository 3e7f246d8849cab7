"""Classification of noisy data, for guidance=classifier."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fmdiff.classifier import Classifier
from fmdiff.condition import Given, label
from fmdiff.objectives.objective import Objective


class Classification(Objective):
    """Cross entropy -log p(y | x_t), x_t = alpha x + beta eps, at every time of the path.

    Its minimiser is the posterior p(y | x_t) (Dhariwal & Nichol 2021, arXiv:2105.05233, section
    4). It needs a network with `logits`. No label is dropped.
    """

    logits = True

    def field(  # type: ignore[override]  # the one objective whose network is no field
        self,
        net: nn.Module | None,
        shape: Sequence[int],
        classes: int = 0,
        y: Given | None = None,
    ) -> Classifier:
        """The network as a classifier."""
        assert net is not None
        return Classifier(net, self.path, self.data_std, tuple(shape), classes, self.data_mean)

    def __call__(
        self, net: nn.Module, x: Tensor, y: Given | None, eps: Tensor, t: Tensor
    ) -> Tensor:
        labels = label(y)
        assert labels is not None
        logits = self.field(net, x.shape[1:]).logits(self.path.mix(x, eps, t), t)
        return F.cross_entropy(logits, labels, reduction="none")
