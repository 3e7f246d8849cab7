"""A classifier of noisy data, p(y | x_t), and the field that it guides: guidance=classifier."""

import copy

import torch
from torch import Tensor, nn

from fmdiff.along import Around
from fmdiff.condition import Given, label, within
from fmdiff.custom import Strength
from fmdiff.field import EDGE, Field
from fmdiff.path import Kind, Path, expand


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


class Tilted(Around):
    """score + k grad log p(y | x_t), in any kind (Dhariwal & Nichol 2021, arXiv:2105.05233).

    k is w for a field without classes, and w - 1 for the conditional branch of a field with
    classes, so that both aim at p(x_t) p(y | x_t)^w. At alpha = 0 nothing of x is left for the
    classifier to see, so the field's interval begins at r = 0.01.
    """

    evaluations = 0  # rows evaluated by the model and by the classifier
    y: Given

    def __init__(self, field: Field, y: Given, w: Strength, classifier: Classifier) -> None:
        super().__init__(field)
        self.y, self.w, self.classifier = y, w, classifier
        own = within(y, field.classes, field.conditions)
        self.base, self.offset = field if own is None else field.bind(own), int(field.classes > 0)
        self.branches = 1 if w == self.offset else 2

    def select(self, rows: Tensor) -> "Tilted":
        part = copy.copy(self)
        part.y, part.base = self.y[rows], self.base.select(rows)
        return part

    def reset(self) -> None:
        self.evaluations = 0

    def price(self, t: Tensor) -> int:
        return self.branches

    def predict(self, x_t: Tensor, t: Tensor, kind: Kind, s: Tensor | None = None) -> Tensor:
        before = self.base.evaluations
        value = self.base.predict(x_t, t, kind, s)
        self.evaluations += self.base.evaluations - before
        if self.branches == 1:
            return value
        score = (self.w(self.path, x_t, t) - self.offset) * self.gradient(x_t, t)
        self.evaluations += len(x_t)
        # every kind is affine in the score, so a change of the score enters by the slope alone
        return value + self.path.convert(score, torch.zeros_like(x_t), t, "score", kind)

    def gradient(self, x_t: Tensor, t: Tensor) -> Tensor:
        """grad log p(y | x_t) (B, *shape), whatever the classifier's own path is."""
        path, theirs, labels = self.path, self.classifier.path, label(self.y)
        assert labels is not None
        u = theirs.time_of_r(path.r(t))
        scale = (theirs.alpha(u) + theirs.beta(u)) / (path.alpha(t) + path.beta(t))
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            log_p = self.classifier.log_prob(expand(scale, x).to(x) * x, u, labels)
            (gradient,) = torch.autograd.grad(log_p.sum(), x)
        return gradient

    def interval(self, kind: Kind = "v") -> tuple[float, float]:
        lo, hi = self.base.interval(kind)
        if self.branches == 1:
            return lo, hi
        edge = torch.tensor(EDGE, dtype=torch.float64)
        return max(lo, self.path.time_of_r(edge).item()), hi

    def start(self, eps: Tensor, t: Tensor, first: int, seed: int) -> Tensor:
        return self.base.start(eps, t, first, seed)
