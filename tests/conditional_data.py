"""Small data sets with conditions of every kind, which tests train on."""

from pathlib import Path

import torch

from fmdiff.codec import Standard
from fmdiff.condition import Form
from fmdiff.data.base import Data, Toy

MATRIX = torch.tensor([[1.0, -0.5], [0.3, 0.8]])
CENTRE, SPREAD = torch.tensor([5.0, -1.0]), torch.tensor([2.0, 0.25])  # of the condition `c`
NOISE = 0.5
YAMLS = {
    "linear": "_target_: conditional_data.Linear\nbatch_size: 64\nconditional: false\n",
    "scaled": "_target_: conditional_data.Scaled\nbatch_size: 64\nconditional: false\n",
    "holes": "_target_: conditional_data.Holes\nbatch_size: 8\nconditional: false\n",
}


def configs(folder: Path) -> tuple[str, str]:
    """The words of a command line that make data=linear, scaled and holes known."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, text in YAMLS.items():
        (folder / "data" / f"{name}.yaml").write_text(text, encoding="utf-8")
    return "--config-dir", str(folder)


class Linear(Toy):
    """x = A z + NOISE e + the label, z = (c - CENTRE) / SPREAD and e normal; `d` tells nothing.

    A fifth of the first components of c is not known.
    """

    shape = (2,)
    labels = 2

    @property
    def conditions(self):
        return {
            "c": Form((2,), tuple(CENTRE.tolist()), tuple(SPREAD.tolist())),
            "d": Form((1,)),
        }

    std = 1.2
    centre = None

    def draw(self, n, generator):
        raise NotImplementedError

    def pairs(self, n, generator):
        """x, c and d side by side (n, 5)."""
        z, e = torch.randn(2, n, 2, generator=generator)
        label = self.draw_labels(n, generator)
        x = z @ MATRIX.T + NOISE * e + label[:, None]
        d = torch.randn(n, 1, generator=generator)
        c = CENTRE + SPREAD * z
        c[:, 0] = torch.where(torch.rand(n, generator=generator) < 0.2, torch.nan, c[:, 0])
        return torch.cat([x, c, d], 1), label

    def with_labels(self, x, label, device, **parts):
        parts = {"c": x[:, 2:4], "d": x[:, 4:]}
        return super().with_labels(x[:, :2], label, device, **parts)


class Scaled(Linear):
    """The same, whose samples a user knows in other units."""

    @property
    def codec(self):
        return Standard.of((2,), torch.tensor([10.0, -20.0]), torch.tensor([3.0, 5.0]))

    def sample(self, start, stop, seed):
        x, y = super().sample(start, stop, seed)
        return self.codec.decode(x), y


class Holes(Data):
    """Stripes (1, 8, 8) of a random phase, with their means over 2x2 pixels and with a hole."""

    shape = (1, 8, 8)
    labels = 2
    std = 0.7

    @property
    def conditions(self):
        return {"low": Form((1, 4, 4), (0.0,), (0.7,)), "rest": Form((1, 8, 8))}

    def rows(self, n, seed):
        g = torch.Generator().manual_seed(seed)
        phase, label = (
            6.3 * torch.rand(n, 1, 1, 1, generator=g),
            torch.randint(2, (n,), generator=g),
        )
        place = torch.arange(8.0).view(1, 1, 1, 8).expand(n, 1, 8, 8)
        place = torch.where(label.view(n, 1, 1, 1) > 0, place, place.mT)
        x = torch.sin(place + phase)
        rest = x.clone()
        rest[:, :, 2:6, 2:6] = torch.nan
        return x, label, {"low": x.view(n, 1, 4, 2, 4, 2).mean((3, 5)), "rest": rest}

    def batch(self, seed, step, rows=slice(None), device="cpu"):
        x, label, parts = self.rows(self.batch_size, 1000 * seed + step)
        cut = {name: part[rows] for name, part in parts.items()}
        return self.with_labels(x[rows], label[rows], device, **cut)

    def held_out(self, n, device="cpu"):
        x, label, parts = self.rows(n, 10**6)
        return self.with_labels(x, label, device, **parts)

    def sample(self, start, stop, seed):
        x, label, parts = self.rows(stop, 10**7 + seed)
        cut = {name: part[start:] for name, part in parts.items()}
        return self.with_labels(x[start:], label[start:], "cpu", **cut)

    def examples(self, n):
        return self.held_out(n)
