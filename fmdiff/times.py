"""Laws of the training time: where in (0, 1) an objective looks."""

import torch
from torch import Tensor


class Uniform:
    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        """(n,) draws in [0, 1), on the generator's device."""
        return torch.rand(n, generator=generator, device=generator.device)


class LogitNormal:
    """t = sigmoid(mean + std z), z standard normal (Esser et al. 2024, arXiv:2403.03206)."""

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        """(n,) draws in (0, 1), on the generator's device."""
        z = torch.randn(n, generator=generator, device=generator.device)
        return torch.sigmoid(self.mean + self.std * z)
