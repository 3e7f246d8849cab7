"""The scene `brownian`: random paths of dX = -theta X dt + sigma dW, against their exact law."""

import math
from collections.abc import Sequence

import torch

from fmdiff.page.scene import Scene
from fmdiff.systems import Additive, OrnsteinUhlenbeck

THETAS = (0.0, 0.5, 1.0, 2.0, 4.0)
STEPS = (5, 10, 20, 50, 100, 200, 500)
GRID = 100  # intervals of the curves of the exact law
LARGEST = 4.0  # standard deviations to which the normal density is drawn


def brownian_scene(
    theta: float = 0.0, diffusion: float = 1.0, x0: Sequence[float] = (0.0,), t_end: float = 1.0
) -> Scene:
    """Paths of Brownian motion (theta = 0) and of the Ornstein-Uhlenbeck process.

    x0: the starts that the paths take in turn. Everything is linear in the start and in the
    diffusion, so the data hold the law and the solver's step for a start of 1, and for a diffusion
    of 1, at each theta.
    """
    thetas = sorted({*THETAS, theta})
    units = [OrnsteinUhlenbeck(t_end, value, 1.0, 1.0) for value in thetas]
    times = torch.linspace(0, t_end, GRID + 1, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    z = torch.linspace(-LARGEST, LARGEST, 81, dtype=torch.float64)
    return Scene(
        kind="brownian",
        title="Brownian motion",
        caption="Each path is a sum of small independent normal steps. A path cannot be foreseen, "
        "but their law can: two of three lie in the inner band, of one standard deviation, and 95 "
        "of 100 in the outer one, of two. For θ = 0 the variance grows as σ² t. A pull θ > 0 back "
        "to zero bounds it by σ² / (2 θ).",
        data={
            "thetas": thetas,
            "steps": STEPS,
            "times": times.tolist(),
            "means": [unit.solution(one, times).tolist() for unit in units],
            "variances": [unit.covariance(times, times).tolist() for unit in units],
            "rows": [[_row(unit, t_end / n) for n in STEPS] for unit in units],
            "density": [z.tolist(), torch.exp(-(z**2) / 2).div(math.tau**0.5).tolist()],
            "inside": [math.erf(k / 2**0.5) for k in (1, 2)],
            "start": {"theta": theta, "sigma": diffusion, "x0": list(x0)},
        },
    )


def _row(unit: OrnsteinUhlenbeck, h: float) -> tuple[float, float]:
    """The coefficients of x and of a standard normal number in the solver's step of length h."""
    t, s = torch.zeros((), dtype=torch.float64), torch.tensor(h, dtype=torch.float64)
    x, noise = torch.tensor([[[1.0], [0.0]], [[0.0], [h**0.5]]], dtype=torch.float64)
    after, _ = Additive().step(unit, x, t, s, None, lambda t, s: noise)
    return after[0].item(), after[1].item()
