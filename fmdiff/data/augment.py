"""Augmentation that does not leak: labels tell the network what happened to an image.

Eight random numbers transform an image. The network is given nine labels that describe the
transform, and the transform is a function of the labels. Labels of zero mean an unchanged image,
and sampling uses those.
Source: Karras et al. 2022, arXiv:2206.00364, appendix F.2; Karras et al. 2020, arXiv:2006.06676.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# x flip, y flip; scale; rotation: cos - 1, sin; stretch: 2 numbers; shift: 2 numbers
LABELS = 9
STEP = 0.2 * math.log(2)  # log of the change of size at a scale or stretch of 1
SHIFT = 1 / 8  # fraction of the image at a shift of 1


def draw(n: int, p: float, draws: torch.Generator) -> Tensor:
    """Labels (n, 9) float32: each transform except the x flip has probability p.

        x flip    U{0, 1}, always                      y flip   U{0, 1}
        scale     a ~ N(0, 1)                          rotation cos b - 1, sin b, b ~ U(-pi, pi)
        stretch   c (cos 2d, sin 2d), c ~ N(0, 1), d ~ U(-pi, pi)     shift    e, f ~ N(0, 1)

    EDM writes the stretch as c (cos d, sin d), which gives a stretch along d and one across it,
    (c, d) and (-c, d + pi), the same labels. With the doubled angle their labels differ.
    """
    active = (torch.rand(n, 5, generator=draws) < p).float()
    flips = (torch.rand(n, 2, generator=draws) < 0.5).float()
    a, c, e, f = torch.randn(n, 4, generator=draws).unbind(1)
    b, d = (torch.rand(n, 2, generator=draws) * 2 - 1).mul(math.pi).unbind(1)
    values = (flips[:, 1], a, b.cos() - 1, b.sin(), c * (2 * d).cos(), c * (2 * d).sin(), e, f)
    which = [0, 1, 2, 2, 3, 3, 4, 4]
    return torch.cat([flips[:, :1], torch.stack(values, 1) * active[:, which]], dim=1)


def inverse(labels: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """M (n, 2, 2) and d (n, 2): the warp moves what lies at M (p - d) to p.

    Places are (x to the right, y down) in pixels from the centre. The image is scaled, turned
    anticlockwise, stretched along one axis as it shrinks along the other, and shifted:

        M^-1 = exp(c s [[cos 2d, sin 2d], [sin 2d, -cos 2d]]) R(-b) exp(a s),   s = STEP.
    """
    _, _, a, turn, sin, u, v, e, f = labels.unbind(1)
    cos, c = turn + 1, torch.hypot(u, v)
    # exp of a matrix whose square is (c s)^2: cosh(c s) + sinh(c s) / c [[u, v], [v, -u]]
    share = torch.where(c > 0, torch.sinh(STEP * c) / c.clamp(min=1e-12), STEP)
    even, size = torch.cosh(STEP * c), torch.exp(-STEP * a)
    (p, q), (r, s) = (even - share * u, -share * v), (-share * v, even + share * u)
    rows = (cos * p - sin * r, cos * q - sin * s), (sin * p + cos * r, sin * q + cos * s)
    matrix = torch.stack([torch.stack(row, 1) for row in rows], 1) * size[:, None, None]
    return matrix, SHIFT * torch.stack([width * e, height * f], 1)


def warp(x: Tensor, labels: Tensor) -> Tensor:
    """x (n, C, H, W) in [-1, 1], scaled, turned, stretched and shifted by labels (n, 9).

    Interpolation is bicubic, and the image is continued beyond its edges by reflection.
    """
    height, width = x.shape[2:]
    matrix, shift = inverse(labels, height, width)
    across = (torch.arange(width, device=x.device) - (width - 1) / 2) - shift[:, :1]
    down = (torch.arange(height, device=x.device) - (height - 1) / 2) - shift[:, 1:]
    rows = [
        matrix[:, i, 0, None, None] * across[:, None]
        + matrix[:, i, 1, None, None] * down[..., None]
        for i in (0, 1)
    ]
    grid = torch.stack([rows[0] * (2 / width), rows[1] * (2 / height)], dim=3)
    warped = F.grid_sample(x, grid, "bicubic", padding_mode="reflection", align_corners=False)
    return warped.clamp(-1, 1)


def transform(x: Tensor, labels: Tensor) -> Tensor:
    """x (n, C, H, W) in [-1, 1] flipped, then warped, by labels (n, 9) on the CPU.

    Flips are exact. An image that is only flipped is not interpolated.
    """
    for column, axis in ((0, 3), (1, 2)):
        mirror = labels[:, column].bool().to(x.device).view(-1, 1, 1, 1)
        x = torch.where(mirror, x.flip(axis), x)
    rows = labels[:, 2:].any(1).nonzero().flatten()
    if len(rows):
        where = rows.to(x.device)
        x = x.index_copy(0, where, warp(x[where], labels[rows].to(x.device)))
    return x
