"""fmdiff page: one HTML file that plays a checkpoint, an exact field or a system in a browser."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fmdiff.build import build
from fmdiff.errors import FmdiffError, nearest, word
from fmdiff.field import Field
from fmdiff.loading import subject
from fmdiff.page.brownian import brownian_scene
from fmdiff.page.euler import euler_scene, textbook
from fmdiff.page.field import field_scene, tour_systems
from fmdiff.page.page import write_page
from fmdiff.page.scene import Scene
from fmdiff.runs.resume import OUTPUTS
from fmdiff.systems import Brownian, OrnsteinUhlenbeck, System

NAME = "page.html"


class Topic(NamedTuple):
    """What a page is about: a field with its data, a system, or neither for a tour."""

    name: str  # plain text
    folder: Path  # of the page, unless out= names another
    field: Field | None = None
    data: Any = None
    system: System | None = None


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
    try:
        write_page(scenes, path, topic.name, command())
    except OSError as error:
        raise FmdiffError(f"out={path} cannot be written to: {error.strerror}") from error
    print(path)


def topic_of(settings: dict[str, Any]) -> Topic:
    """Load what the page is about."""
    choices = settings["choices"]
    if settings["system"]:
        system = build(settings["system"], settings["t_end"])
        return Topic(f"The system {choices['system']}", OUTPUTS, system=system)
    if not (settings["ckpt"] or settings["model"]):
        return Topic("Fields, flows and random paths", OUTPUTS)
    field, data, about = subject(settings)
    if about is None:
        name = f"The field of model={choices['model']} data={choices['data']}"
        return Topic(name, OUTPUTS, field, data)
    folder = Path(about["path"]).parent
    return Topic(f"{folder.parent.name}/{folder.name}", folder, field, data)


def place(out: str | None, folder: Path) -> Path:
    """The file that out= names, or page.html in a folder."""
    if out is None:
        return folder / NAME
    path = Path(out).expanduser()
    return path / NAME if path.is_dir() or not path.suffix else path


def command() -> str:
    """The command line that writes the page again."""
    words = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    return shlex.join(["fmdiff", "page", *words])


def scenes_of(topic: Topic, names: list[str] | None) -> list[Scene]:
    """The scenes of these names, or all that can show the topic.

    Raises FmdiffError for a scene that cannot show it, and if none can.
    """
    made = {name: SCENES[name](topic) for name in names or SCENES}
    for name in names or ():
        if made[name] is None:
            raise FmdiffError(f"scenes={name} cannot show this: {topic.name}")
    scenes = [scene for scene in made.values() if scene]
    if not scenes:
        raise FmdiffError(f"no scene can show this: {topic.name}")
    return scenes


def _brownian(topic: Topic) -> Scene | None:
    system = topic.system
    if isinstance(system, OrnsteinUhlenbeck):
        assert system.origins is not None
        theta = 0.0 if isinstance(system, Brownian) else system.theta
        return brownian_scene(theta, system.diffusion, system.origins[:, 0].tolist(), system.t_end)
    return None if system or topic.field else brownian_scene()


def _field(topic: Topic) -> Scene | None:
    if topic.field:
        return field_scene(fields=[(topic.name, topic.field, topic.data)])
    if topic.system is None:
        return field_scene(tour_systems())
    return field_scene([topic.system])


def _euler(topic: Topic) -> Scene | None:
    if topic.field:
        return None
    return euler_scene([topic.system] if topic.system else textbook())


SCENES: dict[str, Callable[[Topic], Scene | None]] = {
    "field": _field,
    "euler": _euler,
    "brownian": _brownian,
}
