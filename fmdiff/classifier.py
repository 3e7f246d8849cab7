"""A classifier of noisy data, p(y | x_t), for guidance=classifier."""

import torch
from torch import Tensor, nn

from fmdiff.path import Path, expand


class Classifier:
    """log p(y | x_t) = log softmax(net(share (x_t - alpha m), 1000 t))_y.

    share = alpha s / (alpha^2 s^2 + beta^2), s = data_std, m = data_mean (None for 0). So the
    network sees the linear estimate of x - m, divided by s, and the guiding gradient vanishes with
    alpha, as it must. A network that sees x_t at unit scale errs there by its own roughness, which
    guidance divides by alpha. `shape` is that of the data.
    Source: Dhariwal & Nichol 2021 (arXiv:2105.05233, section 4).
    """

    names: tuple[str, ...] = ()  # the names of the classes, if they have names
    sha256: str = ""  # of its checkpoint's spec and these weights

    def __init__(
        self,
        net: nn.Module,
        path: Path,
        data_std: float,
        shape: tuple[int, ...],
        classes: int,
        data_mean: Tensor | None = None,
    ) -> None:
        self.data_mean = data_mean
        self.net, self.path, self.data_std = net, path, data_std
        self.shape, self.classes = tuple(shape), classes

    def logits(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The logits (B, classes) of x_t (B, *shape) at t () or (B,)."""
        a, b = self.path.row("x_t", expand(t, x_t))
        share = a * self.data_std / (a * a * self.data_std**2 + b * b)
        if self.data_mean is not None:
            x_t = x_t - (a * self.data_mean.to(a.device)).to(x_t)
        logits: Tensor = self.net(share.to(x_t) * x_t, (1000 * t).to(x_t).expand(len(x_t)))
        return logits

    def log_prob(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """log p(y | x_t) (B,) of labels y (B,)."""
        return self.logits(x_t, t).log_softmax(1).gather(1, y[:, None])[:, 0]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Classifier":
        """The same classifier, its network moved to a device and dtype."""
        self.net.to(device=device, dtype=dtype)
        return self
