"""coupling=reflow: the teacher of a run, the pairs of its ODE, and how straight the result is.

`fmdiff.training.pairs` keeps them.
"""

import logging
import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmdiff import files, loading
from fmdiff.build import build, spec_of
from fmdiff.condition import Classes, alike, described
from fmdiff.coupling import Pairs, Reflow
from fmdiff.data.base import Data
from fmdiff.errors import FmdiffError
from fmdiff.field import Field, NetField
from fmdiff.guidance import CFG, Unguided
from fmdiff.inversion import shape_of
from fmdiff.randomness import key, noise
from fmdiff.runs import zoo
from fmdiff.sampling import Sampler
from fmdiff.source import Source
from fmdiff.training.given import asked, asked_of_data
from fmdiff.training.pairs import Recipe, make

log = logging.getLogger("fmdiff")


class Drawn(Source):
    """A source whose samples are those of training: other data than are held out for sampling."""

    def __init__(self, source: Source) -> None:
        self.source, self.std = source, source.std

    def sample(self, z: Tensor, first: int, seed: int) -> Tensor:
        return self.source.batch(z, seed, first // len(z))


class Maker:
    """The field whose ODE makes pairs, and how it is solved.

    Raises FmdiffError if the model cannot be loaded, or does not fit the run.
    """

    def __init__(self, coupling: Reflow, data: Data, source: Source, device: torch.device) -> None:
        self.option = f"coupling.ckpt={coupling.ckpt}"
        solver = solver_of(coupling)
        try:
            self.field: NetField = loading.load(
                str(coupling.ckpt), coupling.weights, tuple(coupling.trust)
            )
        except FmdiffError as error:
            raise FmdiffError(f"{self.option}: {error}") from error
        self.check(data, source)
        if coupling.w != 1 and not (data.classes or data.conditions):
            raise FmdiffError(
                f"coupling.w={coupling.w}: guidance needs a teacher with classes or conditions, "
                f"and {self.option} was trained without; set coupling.w=1"
            )
        self.data = data
        self.field.source = Drawn(self.field.source)
        self.field.codec = None  # pairs are of what a model learns, before anything is decoded
        guidance = Unguided() if coupling.w == 1 else CFG(coupling.w)
        self.sampler = Sampler(solver, coupling.steps, guidance=guidance, device=device)

    def check(self, data: Data, source: Source) -> None:
        """Raises FmdiffError unless teacher and run have the same shape, classes and source."""
        field = self.field
        theirs, ours = list(field.shape), list(data.shape)
        if theirs != ours:
            raise FmdiffError(
                f"{self.option} is a model of samples of shape {theirs}, and the data of this run "
                f"have shape {ours}: choose a teacher of the same data"
            )
        names = field.names if field.names and data.classes else data.names
        if field.classes != data.classes or list(names) != list(data.names):
            raise FmdiffError(
                f"{self.option} is a model of {_classes(field.classes, field.names)}, and the "
                f"data of this run have {_classes(data.classes, data.names)}: choose a teacher of "
                "the same classes, or set data.conditional"
            )
        if not alike(field.conditions, data.conditions):
            raise FmdiffError(
                f"{self.option} is a model of {described(field.conditions)}, and the data of this "
                f"run have {described(data.conditions)}: choose a teacher of the same ones"
            )
        if repr(field.source) != repr(source):
            raise FmdiffError(
                f"{self.option} was trained with the source {field.source!r}, and this run has "
                f"{source!r}: give both the same source="
            )

    def block(self, recipe: Recipe, rows: range) -> Tensor:
        """The pairs of these numbers (len(rows), 2, *shape), float32 on the CPU."""
        seed = key(recipe.coupling.seed, "reflow")
        field, classes = self.asked(recipe, rows)
        samples = self.sampler.draw(field, len(rows), seed, first=rows.start, classes=classes)
        z = noise(rows.start, rows.stop, self.field.shape, seed, "start")
        eps = self.field.source.sample(z, rows.start, seed)
        return torch.stack([eps, samples.x.float()], 1)

    def asked(self, recipe: Recipe, rows: range) -> tuple[Field, Classes]:
        """The field and the classes with which samples of these numbers are those of the pairs."""
        if not self.field.conditions:
            return self.field, recipe.classes
        return asked(self.field, recipe.given(rows), rows.start)

    def straightness(self) -> float:
        """The relative straightness of the teacher's own trajectories."""
        return straightness(self.field, self.data, self.sampler.guidance, self.sampler.device)

    def seconds(self, recipe: Recipe) -> tuple[int | None, float]:
        """The evaluations of the teacher a pair, and the seconds that those of a block take."""
        rows = range(recipe.size)
        field, classes = self.asked(recipe, rows)
        y, device = (
            self.sampler.guidance.labels(field, classes, 0, len(rows), 0),
            self.sampler.device,
        )
        flow = self.sampler.seen(
            field.to(device, torch.float32), None if y is None else y.to(device)
        )
        layout = self.sampler.plan(flow)
        if layout.nfe is None:
            return None, math.nan
        x, t = noise(0, len(rows), recipe.shape, 0, "plan").to(device), torch.tensor(0.5)
        for _ in range(2):  # the first call is slower
            begin = time.perf_counter()
            with torch.no_grad():
                float(flow(x, t).sum())
            spent = time.perf_counter() - begin
        return layout.nfe, spent * layout.nfe / flow.price(t)


def _classes(count: int, names: Any) -> str:
    if not count:
        return "no classes"
    return f"{count} classes" + (f" ({', '.join(map(str, names[:10]))})" if names else "")


def solver_of(coupling: Reflow) -> Any:
    """The solver that coupling.solver names.

    Raises FmdiffError for an unknown or stochastic one, or for steps of an adaptive one.
    """
    try:
        solver = build(spec_of("solver", coupling.solver))
    except FmdiffError as error:
        raise FmdiffError(f"coupling.solver={coupling.solver}: {error}") from error
    if solver.stochastic:
        raise FmdiffError(
            f"coupling.solver={coupling.solver} is stochastic, and the end of a pair must follow "
            "from its noise: choose a solver of an ODE, like heun, rk4, adams or dopri5"
        )
    if solver.one_way:
        raise FmdiffError(
            f"coupling.solver={coupling.solver} must be fitted to a model, which is for "
            "fmdiff sample: choose heun, rk4, adams or dopri5"
        )
    if solver.adaptive and coupling.steps is not None:
        raise FmdiffError(
            f"coupling.steps={coupling.steps}: coupling.solver={coupling.solver} chooses its own "
            "steps; set coupling.steps=null"
        )
    return solver


def straightness(
    field: Field, data: Data, guidance: Unguided, device: torch.device | str
) -> float:
    """S / E|z_1 - z_0|^2 along a field's own trajectories: 0 if they are straight.

    S is that of `inversion.straightness`, by 50 steps of Heun's method. Conditions are those of
    held-out data.
    """
    field, classes = asked_of_data(field, data, 2048 if len(field.shape) == 1 else 64)
    sampler = Sampler(steps=50, guidance=guidance, device=device)
    return shape_of(field, sampler, 0, classes=classes).relative


def parts(
    settings: Mapping[str, Any],
    coupling: Reflow,
    data: Data,
    source: Source,
    device: torch.device,
    former: Any = None,
) -> tuple[Recipe, Maker | None]:
    """What the pairs of a run follow from, and their teacher.

    former: the SHA-256 of the teacher with which a resumed run began. Then the teacher may be
    gone, if the pairs are in the cache, and must not be another.
    Raises FmdiffError as `Maker` does, and for another teacher.
    """
    name, spec = settings["choices"]["data"], settings.get("data") or {}
    ckpt = str(coupling.ckpt)
    there = ckpt.startswith(zoo.PREFIX) or Path(ckpt).expanduser().exists()
    if former is not None and not there:
        recipe = Recipe(coupling, data, name, str(former), spec)
        if recipe.load() is not None:
            return recipe, None
    teacher = Maker(coupling, data, source, device)
    if former not in (None, teacher.field.sha256):
        raise FmdiffError(
            f"{teacher.option} is another model than the teacher of this run: its SHA-256 is "
            f"{teacher.field.sha256[:12]} and that of the run's {former!s:.12}; name the file of "
            "the checkpoint with which the run began"
        )
    return Recipe(coupling, data, name, teacher.field.sha256, spec), teacher


def pairs(recipe: Recipe, teacher: Maker | None) -> Pairs:
    """The pairs from the cache; they are made first if they are not there.

    Waits for another process that makes them. Raises FmdiffError if they cannot be written.
    """
    loaded, what = recipe.load(), "found in the cache"
    where = recipe.folder
    if loaded is None and teacher is not None:
        try:
            where.parent.mkdir(parents=True, exist_ok=True)
            with files.lock(where.with_name(f"{where.name}.lock")):
                loaded = recipe.load()  # another process may have made them meanwhile
                if loaded is None:
                    make(recipe, partial(teacher.block, recipe), teacher.straightness)
                    loaded, what = recipe.load(), "written to the cache"
        except OSError as error:
            raise FmdiffError(
                f"coupling=reflow: {where} cannot be written ({error.strerror or error}); make "
                "room there, or point FMDIFF_DATA to another folder"
            ) from error
    if loaded is None:
        raise FmdiffError(f"coupling=reflow: {where} cannot be read back; is the disk whole?")
    log.info(
        "coupling=reflow: %d pairs of %s, %s, %s", loaded.n, recipe.coupling.ckpt, what, where
    )
    return loaded


def conclusion(field: Field, data: Data, pairs: Pairs, device: torch.device) -> str:
    """How straight the trajectories of a trained field are, beside the teacher's, in a line."""
    own = straightness(field, data, Unguided(), device)
    return (
        f"straightness E int |x_1 - x_0 - v|^2 dt / E|x_1 - x_0|^2: {own:.3g}, of the teacher "
        f"{pairs.straightness:.3g} (0: straight, exact in one step of Euler)"
    )


def plan(recipe: Recipe, teacher: Maker | None) -> str:
    """What it costs to make the pairs, in a line."""
    coupling, size = recipe.coupling, recipe.total * recipe.bytes
    what = (
        f"{recipe.n:,} and {recipe.total - recipe.n:,} held out, {size / 1e6:,.0f} MB in the cache"
    )
    if teacher is None or recipe.load() is not None:
        return f"{what}, made already"
    nfe, seconds = teacher.seconds(recipe)
    if nfe is None:
        return f"{what}; {coupling.solver} chooses its steps, so the time is not known"
    blocks = recipe.total / recipe.size
    return (
        f"{what}; {nfe} evaluations of the teacher each, {nfe * recipe.total:,} in all, "
        f"{seconds * blocks:,.0f} s before the first step"
    )
