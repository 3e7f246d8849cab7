"""coupling=reflow: the pairs of a teacher, made once and kept in the cache.

A pair is noise eps and X(eps), where the teacher's ODE leads it (Liu et al. 2023,
arXiv:2209.03003). With classes all of them take turns, as in `fmdiff sample`. The folder
`files.data_root()`/reflow/DATA-HASH holds

    pairs.npy   (m, 2, *shape) float32: eps and X(eps) of every pair, mapped into memory
    about.json  what the pairs follow from, the SHA-256 of each block of pairs, and the
                straightness of the teacher

HASH is made of the teacher's weights, the solver, its steps, the guidance, the number of pairs,
their classes and the seed. Each block is written when it is done, so a process that goes on after
another was killed makes the rest alone. The folder can be deleted at any time; then the pairs are
made again.
"""

import errno
import hashlib
import io
import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fmdiff import files, loading
from fmdiff.build import build, spec_of
from fmdiff.coupling import Pairs, Reflow
from fmdiff.data.base import Data
from fmdiff.data.files import data_root
from fmdiff.errors import FmdiffError
from fmdiff.field import Field, NetField
from fmdiff.guidance import CFG, Unguided
from fmdiff.inversion import shape_of
from fmdiff.machine.progress import Bar
from fmdiff.randomness import key, noise
from fmdiff.sampling import Sampler, default_batch_size
from fmdiff.source import Source

log = logging.getLogger("fmdiff")

FORMAT = 1  # version of the cache; other versions are ignored
POINTS, IMAGES = 2**17, 50_000  # pairs by default
HELD_OUT_POINTS, HELD_OUT_IMAGES = 2000, 200  # pairs beside them, for validation


class Drawn(Source):
    """A source whose samples are those of training: other data than are held out for sampling."""

    def __init__(self, source: Source) -> None:
        self.source, self.std = source, source.std

    def sample(self, z: Tensor, first: int, seed: int) -> Tensor:
        return self.source.batch(z, seed, first // len(z))


class About(NamedTuple):
    """The content of about.json: what the pairs follow from, and what is known of them."""

    key: dict[str, Any]
    straightness: float
    checksums: list[str]


@dataclass(frozen=True, eq=False)
class Recipe:
    """All that the pairs of a run follow from, but for the teacher itself.

    teacher: the SHA-256 of the teacher. name: of the data, for the folder.
    """

    coupling: Reflow
    data: Data
    name: str
    teacher: str

    @property
    def n(self) -> int:
        """The number of pairs to train on."""
        return self.coupling.n or (POINTS if self.data.points else IMAGES)

    @property
    def total(self) -> int:
        """The number of all pairs."""
        return self.n + (HELD_OUT_POINTS if self.data.points else HELD_OUT_IMAGES)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.data.shape)

    @property
    def size(self) -> int:
        """The number of pairs in a block, which are computed at once."""
        return default_batch_size(self.shape)

    @property
    def classes(self) -> list[int] | None:
        """The labels that take turns."""
        return self.data.label_numbers.tolist() if self.data.classes else None

    @cached_property
    def key(self) -> dict[str, Any]:
        """What the pairs follow from."""
        coupling = self.coupling
        return {
            "format": FORMAT,
            "teacher": str(self.teacher),
            "solver": spec_of("solver", coupling.solver),
            "steps": coupling.steps,
            "w": coupling.w,
            "n": self.n,
            "total": self.total,
            "seed": coupling.seed,
            "shape": list(self.shape),
            "classes": self.classes,
        }

    @cached_property
    def folder(self) -> Path:
        """The folder of the pairs in the cache."""
        text = json.dumps(self.key, sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        return data_root().absolute() / "reflow" / f"{self.name}-{digest}"

    @property
    def blocks(self) -> list[range]:
        """The numbers of the pairs of each block."""
        total, size = self.total, self.size
        return [range(i, min(i + size, total)) for i in range(0, total, size)]

    @cached_property
    def head(self) -> bytes:
        """The header of pairs.npy."""
        head = io.BytesIO()
        about = {"descr": "<f4", "fortran_order": False, "shape": (self.total, 2, *self.shape)}
        np.lib.format.write_array_header_1_0(head, about)
        return head.getvalue()

    @property
    def bytes(self) -> int:
        """The size of one pair on the disk."""
        return 8 * math.prod(self.shape)

    def about(self) -> About:
        """The content of about.json; without a checksum if it is missing, damaged or of others."""
        try:
            about = About(**json.loads(files.read_text(self.folder / "about.json", self.folder)))
            if about.key == self.key and len(about.checksums) <= len(self.blocks):
                return about._replace(straightness=float(about.straightness))
        except (OSError, ValueError, TypeError, RecursionError):
            pass
        return About(self.key, math.nan, [])

    def load(self) -> Pairs | None:
        """The pairs in the cache, verified and mapped into memory; None if they are not whole."""
        about = self.about()
        if len(about.checksums) < len(self.blocks):
            return None
        array = self.read(about.checksums)
        if array is None:
            log.warning("%s is damaged: its pairs are made again", self.folder)
            return None
        eps, x = torch.from_numpy(array).unbind(1)
        y = None
        if self.classes is not None:
            y = torch.tensor(self.classes)[torch.arange(self.total) % len(self.classes)]
        return Pairs(eps, x, y, self.n, self.teacher, about.straightness)

    def read(self, checksums: list[str]) -> np.ndarray | None:
        """The pairs of the first blocks (k, 2, *shape), if they have these checksums."""
        rows = sum(map(len, self.blocks[: len(checksums)]))
        try:
            with files.open_regular(self.folder / "pairs.npy", self.folder) as file:
                if file.read(len(self.head)) != self.head:
                    return None
                shape = (rows, 2, *self.shape)
                # "c" is copy on write: the tensor is writable and the file stays as it is
                array = np.memmap(file, np.float32, "c", len(self.head), shape)
        except (OSError, ValueError):
            return None
        whole = all(
            hashlib.sha256(array[block.start : block.stop].data).hexdigest() == checksum
            for block, checksum in zip(self.blocks, checksums, strict=False)
        )
        return array if whole else None


class Teacher:
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
        if coupling.w != 1 and not data.classes:
            raise FmdiffError(
                f"coupling.w={coupling.w}: guidance needs a teacher with classes, and "
                f"{self.option} was trained without; set coupling.w=1"
            )
        self.field.source = Drawn(self.field.source)
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
        if repr(field.source) != repr(source):
            raise FmdiffError(
                f"{self.option} was trained with the source {field.source!r}, and this run has "
                f"{source!r}: give both the same source="
            )

    def block(self, recipe: Recipe, rows: range) -> Tensor:
        """The pairs of these numbers (len(rows), 2, *shape), float32 on the CPU."""
        seed = key(recipe.coupling.seed, "reflow")
        samples = self.sampler.draw(
            self.field, len(rows), seed, first=rows.start, classes=recipe.classes
        )
        z = noise(rows.start, rows.stop, self.field.shape, seed, "start")
        eps = self.field.source.sample(z, rows.start, seed)
        return torch.stack([eps, samples.x.float()], 1)

    def straightness(self) -> float:
        """The relative straightness of the teacher's own trajectories."""
        return straightness(self.field, self.sampler.guidance, self.sampler.device)

    def seconds(self, recipe: Recipe) -> tuple[int | None, float]:
        """The evaluations of the teacher a pair, and the seconds that those of a block take."""
        rows = range(recipe.size)
        y = self.sampler.guidance.labels(self.field, recipe.classes, 0, len(rows), 0)
        device = self.sampler.device
        flow = self.sampler.seen(
            self.field.to(device, torch.float32), None if y is None else y.to(device)
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
    if solver.adaptive and coupling.steps is not None:
        raise FmdiffError(
            f"coupling.steps={coupling.steps}: coupling.solver={coupling.solver} chooses its own "
            "steps; set coupling.steps=null"
        )
    return solver


def straightness(field: Field, guidance: Unguided, device: torch.device | str) -> float:
    """S / E|z_1 - z_0|^2 along a field's own trajectories: 0 if they are straight.

    S is that of `inversion.straightness`, by 50 steps of Heun's method.
    """
    return shape_of(field, Sampler(steps=50, guidance=guidance, device=device), 0).relative


def parts(
    settings: Mapping[str, Any],
    coupling: Reflow,
    data: Data,
    source: Source,
    device: torch.device,
    former: Any = None,
) -> tuple[Recipe, Teacher | None]:
    """What the pairs of a run follow from, and their teacher.

    former: the SHA-256 of the teacher with which a resumed run began. Then the teacher may be
    gone, if the pairs are in the cache, and must not be another.
    Raises FmdiffError as `Teacher` does, and for another teacher.
    """
    name = settings["choices"]["data"]
    if former is not None and not Path(str(coupling.ckpt)).expanduser().exists():
        recipe = Recipe(coupling, data, name, str(former))
        if recipe.load() is not None:
            return recipe, None
    teacher = Teacher(coupling, data, source, device)
    if former not in (None, teacher.field.sha256):
        raise FmdiffError(
            f"{teacher.option} is another model than the teacher of this run: its SHA-256 is "
            f"{teacher.field.sha256[:12]} and that of the run's {former!s:.12}; name the file of "
            "the checkpoint with which the run began"
        )
    return Recipe(coupling, data, name, teacher.field.sha256), teacher


def pairs(recipe: Recipe, teacher: Teacher | None) -> Pairs:
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
                    make(recipe, teacher)
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


def make(recipe: Recipe, teacher: Teacher) -> None:
    """Make the pairs that the cache lacks, and write each block when it is done.

    Raises OSError, and FmdiffError if pairs are not finite.
    """
    folder = files.make_folder(recipe.folder)
    path, about = folder / "pairs.npy", recipe.about()
    if not about.checksums or recipe.read(about.checksums) is None:
        path.unlink(missing_ok=True)
        about = About(recipe.key, teacher.straightness(), [])
    checksums = list(about.checksums)
    start = sum(map(len, recipe.blocks[: len(checksums)]))
    with files.append(path) as file, Bar(recipe.total, "pair") as bar:
        bar(start)
        file.truncate(len(recipe.head) + start * recipe.bytes if start else 0)
        if not start:
            _write(file, recipe.head)
        for rows in recipe.blocks[len(checksums) :]:
            content = teacher.block(recipe, rows).numpy().astype("<f4").tobytes()
            _write(file, content)
            files.sync(file)
            checksums.append(hashlib.sha256(content).hexdigest())
            now = about._replace(checksums=checksums)
            files.write_text(folder / "about.json", json.dumps(now._asdict()))
            bar(len(rows))


def _write(file: Any, content: bytes) -> None:
    """Write all of it to an unbuffered file, which may take less at a time."""
    rest = memoryview(content)
    while rest:
        written = file.write(rest)
        if not written:
            raise OSError(errno.ENOSPC, "no space left")
        rest = rest[written:]


def conclusion(field: Field, pairs: Pairs, device: torch.device) -> str:
    """How straight the trajectories of a trained field are, beside the teacher's, in a line."""
    own = straightness(field, Unguided(), device)
    return (
        f"straightness E int |x_1 - x_0 - v|^2 dt / E|x_1 - x_0|^2: {own:.3g}, of the teacher "
        f"{pairs.straightness:.3g} (0: straight, exact in one step of Euler)"
    )


def plan(recipe: Recipe, teacher: Teacher | None) -> str:
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
