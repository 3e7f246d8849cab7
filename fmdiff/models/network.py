"""The contract of networks, which fields, classifiers and training steps call."""

from collections.abc import Callable

from torch import Tensor, nn

from fmdiff.errors import FmdiffError


class Network(nn.Module):
    """A network net(x_t, t, y), built with the keywords `shape` and `classes` and those of a YAML.

    x_t (B, *shape) of about unit variance, t (B,) in [0, 1000], y (B,) in 0..classes (`classes`
    is the null label) or None without classes -> (B, *shape). A plain nn.Module works too; only
    `flat` and `logits` need this class.
    """

    # True for points (d,), False for images (C, H, W), None for both as the data decide
    flat: bool | None = None
    logits = False  # whether it returns (B, classes), as objective=classification trains it

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The prediction at unit scale, or the logits (B, classes)."""
        raise NotImplementedError


def answer(net: Callable[..., Tensor], x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
    """net(x_t, t, y). Raises FmdiffError unless it is shaped like x_t."""
    out = net(x_t, t, y)
    if not isinstance(out, Tensor) or out.shape != x_t.shape:
        what = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise FmdiffError(
            f"model: {type(net).__name__} must return a tensor of shape {list(x_t.shape)}, that "
            f"of x_t, and returned {what}"
        )
    return out


def answers_logits(net: nn.Module) -> bool:
    """Whether a network classifies. A plain nn.Module predicts a quantity of the path."""
    return isinstance(net, Network) and net.logits
