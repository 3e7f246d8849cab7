"""The input of an optimiser step, a function of (seed, step) and of no weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from fmdiff.condition import LABEL, Given, chosen, label, named, null
from fmdiff.coupling import Coupling, Pairs
from fmdiff.data.base import Data, concatenate
from fmdiff.machine.ahead import Ahead
from fmdiff.machine.aside import Aside
from fmdiff.objectives.objective import Objective
from fmdiff.randomness import generator
from fmdiff.training.tally import Tally

Terms = tuple[Given | None, ...]  # a micro-batch: the objective's terms, then augmentation labels
Coupled = tuple[Tensor, Given | None, Tensor, Tensor | None]  # x, y, eps, augmentation
Draws = tuple[Any, ...]  # x, y, eps, t and what else the objective draws, augmentation
Match = tuple[Tensor, list[list[float]]]  # indices and costs for a block of steps
POINTS_AT_ONCE = 512  # batches of up to so many points are paired in milliseconds


class Batches:
    """(steps, rows) -> the micro-batches of each step, ready for the network.

    Everything is drawn for the global batch, and a device takes its `rows` of it. x and y come
    from the data, eps from the source in the order of the coupling, and t from the time law.
    Labels and the other conditions are dropped at the two rates of `dropout`, for classifier-free
    guidance. The coupling does not depend on the weights, so threads compute it in advance, during
    the steps before, or processes in their place. `steps` is the number of steps of the whole
    training. With `pairs` x, y and eps are theirs.
    """

    def __init__(
        self,
        data: Data,
        objective: Objective,
        time: Callable[[int, Generator], Tensor],
        coupling: Coupling,
        seed: int,
        dropout: tuple[float, float] = (0.0, 0.0),
        accumulate: int = 1,
        steps: int = 1,
        pairs: Pairs | None = None,
    ) -> None:
        self.data, self.objective, self.time, self.coupling = data, objective, time, coupling
        self.seed, self.accumulate = seed, accumulate
        self.label_dropout, self.condition_dropout = dropout
        self.source, self.steps, self.pairs = objective.source, steps, pairs
        self.device = torch.device("cpu")
        self.tally = Tally()
        # fast couplings are computed for as many steps at once as are drawn at once
        points = len(data.shape) == 1
        self.block = 25 if points and data.batch_size <= POINTS_AT_ONCE else 1
        depth = (50 if points else 4) // self.block
        self.aside = Aside(coupling.block, "pairs noise with data")
        self.ahead: Ahead[Match] = Ahead(self.match, depth, beside=self.match_aside)
        self.current = -1  # the block that `matched` belongs to
        self.matched: Match = (torch.empty(0), [])
        self.cost_step = -1  # the last step whose transport costs were counted

    def __call__(self, steps: range, rows: slice) -> list[list[Terms]]:
        """The micro-batches of these rows, `accumulate` of them for each step."""
        x, y, eps, *times, augmentation = self.draw(steps, rows)
        terms = self.objective.terms(x, y, eps, *times)
        count = self.accumulate * len(steps)
        size = len(x) // count
        columns = [
            [None] * count if term is None else term.split(size) for term in (*terms, augmentation)
        ]
        parts = list(zip(*columns, strict=True))
        return [parts[i : i + self.accumulate] for i in range(0, count, self.accumulate)]

    def draw(self, steps: range, rows: slice) -> Draws:
        """x, y, eps, times and the augmentation's labels of these rows, one step after another."""
        x, y, eps, augmentation = self.couple(steps, rows)
        if y is not None:
            y = self.drop(y, steps, rows)
        times = zip(*(self.times(k) for k in steps), strict=True)
        columns = (concatenate([part[rows] for part in column]) for column in times)
        return x, y, eps, *columns, augmentation

    def couple(self, steps: range, rows: slice) -> Coupled:
        """x, y, eps and the augmentation's labels of these rows, before any label is dropped."""
        if self.pairs is not None:
            size = self.data.batch_size
            return *self.pairs.batches(self.seed, steps, size, rows, self.device), None
        x, y, augmentation = self.data.batches(self.seed, steps, rows, self.device)
        eps = [self.noise(k) for k in steps]
        if self.coupling.permutes:
            eps = [self.pair(k, z) for k, z in zip(steps, eps, strict=True)]
        return x, y, concatenate([z[rows] for z in eps]), augmentation

    def times(self, k: int) -> tuple[Tensor, ...]:
        """The times of the global batch of step k, and what else the objective draws."""

        def draws(purpose: str) -> Generator:
            return generator(self.seed, purpose, k, device=self.device)

        return self.objective.times(self.data.batch_size, self.time, draws, k / self.steps)

    def noise(self, k: int) -> Tensor:
        """eps of the global batch of step k, in the order of drawing."""
        size, device = (self.data.batch_size, *self.data.shape), self.device
        draws = generator(self.seed, "eps", k, device=device)
        return self.source.batch(torch.randn(size, device=device, generator=draws), self.seed, k)

    def drop(self, y: Given, steps: range, rows: slice) -> Given:
        """Drop some of the labels and conditions y of these steps and rows, each on its own."""
        for name in [*([] if label(y) is None else [LABEL]), *named(y)]:
            if rate := self.label_dropout if name == LABEL else self.condition_dropout:
                y = self._drop(y, name, rate, steps, rows)
        return y

    def _drop(self, y: Given, name: str, rate: float, steps: range, rows: slice) -> Given:
        purpose = "label_dropout" if name == LABEL else f"condition_dropout {name}"
        size = self.data.batch_size
        u = [torch.rand(size, generator=generator(self.seed, purpose, k)) for k in steps]
        drop = concatenate([v[rows] for v in u]) < rate
        return chosen(drop, null(y, self.data.classes, [name]), y)

    def pair(self, k: int, eps: Tensor) -> Tensor:
        """Put eps of the global batch of step k in the coupling's order; count its cost once."""
        block, i = divmod(k, self.block)
        if self.current != block:
            self.current, self.matched = block, self.ahead(block)
        index, costs = self.matched
        if k != self.cost_step:
            self.cost_step = k
            self.tally.add_costs(*costs[i])
        return eps[index[i]]

    def match(self, block: int) -> Match:
        """The pairs of each step of a block, and the transport costs with and without coupling."""
        index, costs = self.coupling.block(*self.unpaired(block))
        return index, costs.tolist()

    def match_aside(self, block: int) -> Match:
        """The same, on the CPU from another process where that pays."""
        if self.device.type != "cpu":
            return self.match(block)
        index, costs = self.aside(*self.unpaired(block))
        return index, costs.tolist()

    def unpaired(self, block: int) -> tuple[Tensor, Tensor, Tensor | None, int, range]:
        """x, eps and labels of the steps of a block, one after another, the seed, the steps."""
        steps = range(block * self.block, (block + 1) * self.block)
        x, y, _ = self.data.batches(self.seed, steps, device=self.device)
        return x, concatenate([self.noise(k) for k in steps]), label(y), self.seed, steps

    def close(self) -> None:
        """End the threads and processes of the coupling, and the threads of the data."""
        self.aside.close()
        self.ahead.close()
        if self.data.shards is not None:
            self.data.shards.close()
