"""fmdiff page: one HTML file that plays a checkpoint, an exact field or a system in a browser."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fmdiff.build import build, named
from fmdiff.errors import FmdiffError, nearest, word
from fmdiff.exact import Mixture, exact
from fmdiff.field import Field
from fmdiff.loading import subject
from fmdiff.page import euler, field
from fmdiff.page.brownian import brownian_scene
from fmdiff.page.euler import euler_scene
from fmdiff.page.field import field_scene
from fmdiff.page.images import images_scene
from fmdiff.page.ode_sde import ode_sde_scene
from fmdiff.page.page import write_page
from fmdiff.page.sampler import sampler_scene
from fmdiff.page.scene import Scene
from fmdiff.path import CondOT
from fmdiff.runs.resume import OUTPUTS
from fmdiff.runs.zoo import PREFIX
from fmdiff.systems import (
    Circular,
    Formulas,
    Linear,
    Mixed,
    OrnsteinUhlenbeck,
    Saddle,
    System,
)

NAME = "page.html"


class Topic(NamedTuple):
    """What a page is about: a field with its data, a system, or neither for a tour."""

    name: str  # plain text
    source: str  # the words of a command line that name its field
    folder: Path  # of the page, unless out= names another
    field: Field | None = None
    data: Any = None
    system: System | None = None

    @property
    def tour(self) -> bool:
        """Whether the page shows what fmdiff brings along."""
        return self.field is None and self.system is None


def page(cfg: DictConfig) -> None:
    """Write the page that the settings describe, and print its path.

    Raises FmdiffError for a scene that is unknown or cannot show the field or system, for a file
    that exists, and for a page that would be too large.
    """
    settings: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    for name in settings["scenes"] or ():
        if name not in SCENES:
            raise FmdiffError(f"scenes={name}: no scene has this name; {nearest(name, SCENES)}")
    topic = topic_of(settings)
    path = place(settings["out"], topic.folder)
    if path.exists() and not settings["overwrite"]:
        raise FmdiffError(f"{word('out', path)} exists: add overwrite=true to replace it")
    scenes = scenes_of(topic, settings["scenes"])
    title = topic.name.replace("the ", "The ", 1) if topic.name.startswith("the ") else topic.name
    try:
        write_page(scenes, path, title, command())
    except OSError as error:
        raise FmdiffError(f"out={path} cannot be written to: {error.strerror}") from error
    print(path)


def topic_of(settings: dict[str, Any]) -> Topic:
    """Load what the page is about."""
    choices = settings["choices"]
    if settings["system"]:
        system = build(settings["system"], settings["t_end"])
        name = f"the system {choices['system']}"
        if isinstance(system, Mixed):
            data = named("data", settings["system"]["data"])
            source = f"model=exact data={settings['system']['data']}"
            return Topic(name, source, OUTPUTS, system.mixture, data, system)
        return Topic(name, "", OUTPUTS, system=system)
    if not (settings["ckpt"] or settings["model"]):
        return Topic("Fields, flows and random paths", "model=exact data=8gaussians", OUTPUTS)
    field, data, about = subject(settings)
    if field.conditions:
        raise FmdiffError(
            f"a page plays models of class labels alone, and this one has the conditions "
            f"{', '.join(field.conditions)}: show its samples by fmdiff sample cond.NAME=VALUE"
        )
    source = shlex.join(words())
    if about is None:
        name = f"the field of model={choices['model']} data={choices['data']}"
        return Topic(name, source, OUTPUTS, field, data)
    if settings["ckpt"].startswith(PREFIX):
        return Topic(settings["ckpt"], source, OUTPUTS, field, data)
    folder = Path(about["path"]).parent
    return Topic("/".join(folder.absolute().parts[-2:]), source, folder, field, data)


def place(out: str | None, folder: Path) -> Path:
    """The file that out= names, or page.html in a folder."""
    if out is None:
        return folder / NAME
    path = Path(out).expanduser()
    return path / NAME if path.is_dir() or not path.suffix else path


def command() -> str:
    """The command line that writes the page again, in its usual place."""
    return shlex.join(["fmdiff", "page", *words(more=("scenes=",))])


def words(more: tuple[str, ...] = ()) -> list[str]:
    """The words of the command line but those about the page; more: beginnings that count too."""
    task = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    of_page = {"out=", "overwrite=", "scenes="} - set(more)
    return [word for word in task if not word.startswith(tuple(of_page))]


def scenes_of(topic: Topic, names: list[str] | None) -> list[Scene]:
    """The scenes of these names, or all that can show the topic.

    Raises FmdiffError for a scene that cannot show it, and if none can.
    """
    made = {name: SCENES[name](topic) for name in names or SCENES}
    for name in names or ():
        if made[name] is None:
            raise FmdiffError(f"scenes=[{name}] shows {SHOWN[name]}, not {topic.name}")
    scenes = [scene for scene in made.values() if scene]
    if not scenes:
        shown = "; ".join(f"{name} shows {what}" for name, what in SHOWN.items())
        raise FmdiffError(f"no scene can show {topic.name}: {shown}")
    return scenes


def _field(topic: Topic) -> Scene | None:
    if topic.tour:
        mixtures = [(f"exact field of {name}", *_exact(name)) for name in ("8gaussians", "gmm4")]
        return field_scene(field.tour_systems(), mixtures)
    if topic.field and tuple(topic.field.shape) == (2,):
        return field_scene(fields=[(topic.name, topic.field, topic.data)])
    system = topic.system
    if isinstance(system, Linear | Circular | Saddle | Formulas) and (
        isinstance(system, Linear) or system.dimension == 2
    ):
        return field_scene([system])
    return None


def _euler(topic: Topic) -> Scene | None:
    system = topic.system
    if topic.tour:
        return euler_scene(euler.textbook())
    if isinstance(system, Linear | Circular | Saddle | Formulas) and system.dimension <= 2:
        return euler_scene([system])
    return None


def _brownian(topic: Topic) -> Scene | None:
    system = topic.system
    if topic.tour:
        return brownian_scene()
    if isinstance(system, OrnsteinUhlenbeck):
        assert system.origins is not None
        starts = system.origins[:, 0].tolist()
        return brownian_scene(system.theta, system.diffusion, starts, system.t_end)
    return None


def _ode_sde(topic: Topic) -> Scene | None:
    if topic.tour:
        names = ("two_modes", "gmm4")
        return ode_sde_scene([(name, _exact(name)[0]) for name in names], x0=(0.1,))
    of = topic.field
    if not isinstance(of, Mixture) or of.shape not in ((1,), (2,)):
        return None
    origin = None if topic.system is None else topic.system.origin
    return ode_sde_scene([(topic.name, of)], x0=() if origin is None else origin.tolist())


def _sampler(topic: Topic) -> Scene | None:
    if topic.tour:
        return sampler_scene(*_exact("8gaussians"), source=topic.source)
    if topic.field and tuple(topic.field.shape) in ((1,), (2,)):
        return sampler_scene(topic.field, topic.data, source=topic.source)
    return None


def _images(topic: Topic) -> Scene | None:
    of = topic.field
    if of is None or of.net is None or len(of.shape) != 3:
        return None
    return images_scene(of, topic.name, topic.source)


def _exact(name: str) -> tuple[Mixture, Any]:
    """The exact field of data of this name, along CondOT, and the data."""
    data = named("data", name)
    return exact(data, CondOT()), data


SCENES: dict[str, Callable[[Topic], Scene | None]] = {
    "field": _field,
    "euler": _euler,
    "brownian": _brownian,
    "ode_sde": _ode_sde,
    "sampler": _sampler,
    "images": _images,
}
SHOWN = {
    "field": "a field of the plane, or linear, circular, saddle or two formulas",
    "euler": "linear, circular, saddle or one or two formulas",
    "brownian": "brownian or ou",
    "ode_sde": "an exact mixture of one or two dimensions",
    "sampler": "a field of points of one or two dimensions",
    "images": "a network of images",
}
