"""The types and ranges of all keys in one table, checked before any work is done."""

import math
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fmdiff.errors import FmdiffError
from fmdiff.runs.config import leaves
from fmdiff.settings import combinations, extras, integers
from fmdiff.settings.rules import (
    CLASSES,
    COUNTS,
    DEVICE,
    EMA,
    FLAG,
    FRACTION,
    NAMES,
    PATH,
    RESUME,
    TEXT,
    TEXTS,
    WEIGHTS,
    WIDTHS,
    Rule,
    integer,
    is_duration,
    is_int,
    is_list,
    is_number,
    is_w,
    number,
    one_of,
    or_null,
)

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
RULES: dict[str, Rule] = {
    "seed": integer(0),
    "device": DEVICE,
    "devices": integer(1),
    "threads": or_null(integer(1)),
    "name": or_null(PATH),
    "out": or_null(PATH),
    "overwrite": FLAG,
    "trust": TEXTS,
    "resume": RESUME,
    "init": or_null(PATH),
    "plan": FLAG,
    "profile": FLAG,
    "ckpt": or_null(PATH),
    "export": or_null(PATH),
    "half": FLAG,
    "weights": WEIGHTS,
    "n": or_null(integer(1)),
    "steps": or_null(integer(1)),
    "nfe": or_null(integer(1)),
    "clip": one_of("none", "data", "dynamic"),
    "batch_size": or_null(integer(1)),
    "classes": CLASSES,
    "coordinates": one_of("straight", "native"),
    "final": one_of("auto", "solver", "denoise"),
    "against": or_null(PATH),
    "metrics": or_null(NAMES),
    "samples": or_null(PATH),
    "result": or_null(PATH),
    "repeats": integer(1),
    "grid.solver": or_null(NAMES),
    "grid.schedule": or_null(NAMES),
    "grid.guidance": or_null(NAMES),
    "grid.nfe": or_null(COUNTS),
    "grid.steps": or_null(COUNTS),
    "grid.w": or_null(Rule(lambda v: bool(v) and is_list(v, is_w), "a list of numbers")),
    "features.weights": or_null(PATH),
    "features.download": FLAG,
    "features.check": FLAG,
    "kind": one_of("x", "eps", "v", "score", "v_sh"),
    "times": or_null(integer(1)),
    "dtype": one_of("float32", "float64"),
    "precision": one_of(*PRECISIONS),
    "compile": or_null(FLAG),
    "trajectory": FLAG,
    "png": FLAG,
    "paste": FLAG,
    "data.batch_size": integer(1),
    "data.augment": FRACTION,
    "data.root": or_null(PATH),
    "data.size": or_null(integer(1)),
    "data.channels": Rule(lambda v: is_int(v) and v in (1, 3), "1 or 3"),
    "data.skip_broken": FLAG,
    "model.augment": Rule(lambda v: is_int(v) and v in (0, 9), "0 or 9"),
    "coupling.ckpt": or_null(PATH),
    "coupling.weights": WEIGHTS,
    "coupling.n": or_null(integer(1)),
    "coupling.solver": TEXT,
    "coupling.steps": or_null(integer(1)),
    "coupling.w": number(),
    "coupling.seed": integer(0),
    "path.shift": number(above=0),
    "path.n": number(above=0),
    "path.rate_min": number(low=0),
    "path.rate_max": number(above=0),
    "path.noise_min": number(above=0),
    "path.noise_max": number(above=0),
    "path.rho": number(above=0),
    "objective.gamma": number(above=0),
    "objective.bias": number(),
    "objective.huber": number(above=0),
    "objective.precondition": FLAG,
    "objective.floor": number(low=0),
    "objective.t_eps": number(low=0),
    "optim.lr": number(above=0),
    "guidance.w": Rule(is_w, "a number or a formula"),
    "guidance.phi": FRACTION,
    "guidance.eta": number(),
    "guidance.threshold": or_null(number(above=0)),
    "guidance.momentum": Rule(lambda v: is_number(v) and -1 < v < 1, "a number between -1 and 1"),
    "guidance.zero": Rule(lambda v: is_number(v) and 0 <= v < 1, "a number from 0 to below 1"),
    "guidance.interval": or_null(
        Rule(
            lambda v: is_list(v, FRACTION.passes) and len(v) == 2 and v[0] < v[1],
            "two numbers from 0 to 1, the lower first, like [0.2,0.8]",
        )
    ),
    "guidance.on": or_null(
        Rule(
            lambda v: bool(v) and is_list(v, TEXT.passes),
            "a list of names of conditions like [label,c]",
        )
    ),
    "guidance.ckpt": or_null(PATH),
    "guidance.weights": WEIGHTS,
    "schedule.p": number(above=0),
    "schedule.q": number(above=0),
    "schedule.end": one_of("start", "end"),
    "schedule.noise_min": number(above=0),
    "schedule.noise_max": number(above=0),
    "schedule.rho": number(above=0),
    "schedule.shift": number(above=0),
    "schedule.n": or_null(integer(2)),
    "schedule.reference": integer(20),
    "schedule.seed": integer(0),
    "solver.n": or_null(integer(2)),
    "solver.reference": integer(20),
    "solver.seed": integer(0),
    "solver.noise": FRACTION,
    "solver.rtol": number(above=0),
    "solver.atol": number(above=0),
    "solver.max_nfe": integer(1),
    "trainer.max_steps": integer(1),
    "trainer.max_time": Rule(is_duration, 'seconds or "hours:minutes:seconds", or null'),
    "trainer.warmup": integer(0),
    "trainer.decay": one_of("constant", "cosine"),
    "trainer.clip": or_null(number(above=0)),
    "trainer.accumulate": integer(1),
    "trainer.ema": EMA,
    "trainer.ema_warmup": FLAG,
    "trainer.power_ema": WIDTHS,
    "trainer.ema_every": integer(1),
    "trainer.snapshot_every": or_null(integer(1)),
    "trainer.label_dropout": FRACTION,
    "trainer.condition_dropout": FRACTION,
    "trainer.precision": one_of(*PRECISIONS),
    "trainer.compile": or_null(FLAG),
    "trainer.channels_last": or_null(FLAG),
    "trainer.recompute": FLAG,
    "trainer.devices": integer(1),
    "trainer.inner_steps": or_null(integer(1)),
    "trainer.log_every": integer(1),
    "trainer.validate_every": integer(1),
    "trainer.picture_every": integer(1),
    "trainer.metrics": or_null(NAMES),
    "trainer.metrics_every": integer(1),
    "trainer.metrics_n": integer(4),
    "trainer.best": or_null(TEXT),
    "trainer.checkpoint_every": integer(1),
    "trainer.keep": or_null(integer(1)),
    "trainer.logger": one_of("tensorboard", "csv", "wandb"),
    "trainer.skip_nonfinite": integer(0),
    "trainer.spike": or_null(number(above=1)),
    "trainer.progress": FLAG,
}
# keys of paths and names; what is typed there is always a text
PATHS = {key for key, rule in RULES.items() if rule.says.startswith(PATH.says)} | {
    "resume",
    "runs",
}
STEPS = Rule(
    lambda v: v is None or is_list(v if isinstance(v, list) else [v], integer(1).passes),
    "an integer >= 1, a list of them like [4,10,50], or null",
)
RUNS = Rule(
    lambda v: v is None or PATH.passes(v) or (bool(v) and is_list(v, PATH.passes)),
    "a folder, a list of folders like [outputs/a,outputs/b], or null",
)
LABEL = one_of("own", "none")
SYSTEM = {
    "t_end": number(above=0),
    "system.theta": number(),
    "system.omega": number(),
    "system.diffusion": number(low=0),
}
# rules of one command; they replace or extend those above
OWN_RULES: dict[str, dict[str, Rule]] = {
    "likelihood": {
        "divergence": one_of("auto", "exact", "hutchinson"),
        "probes": integer(1),
        "probe": one_of("rademacher", "gaussian"),
        "label": LABEL,
    },
    "invert": {
        "steps": COUNTS,
        "solvers": NAMES,
        "label": LABEL,
        "interpolate": or_null(integer(2)),
        "straightness": FLAG,
        "inpaint": or_null(
            Rule(
                lambda v: is_list(v, integer(0).passes) and len(v) == 4,
                "four integers >= 0, [top,left,bottom,right]",
            )
        ),
    },
    "evaluate": {"n": or_null(integer(2))},
    "sample": {"animation": one_of("gif", "apng", "webp")},
    "report": {"runs": RUNS},
    "page": {
        **SYSTEM,
        "scenes": or_null(Rule(NAMES.passes, "a list of scenes like [field,euler]")),
    },
    "simulate": {
        **SYSTEM,
        "steps": STEPS,
        "solvers": or_null(TEXTS),
        "noise": or_null(Rule(lambda v: bool(v) and is_list(v, is_number), "a list of numbers")),
        "animation": FLAG,
    },
}
# keys that accept values of other types than their default's
SEVERAL_TYPES = {"data.cov", "system.x0", "guidance.w"}
ABSENT = object()


def check(command: str, cfg: DictConfig) -> None:
    """Raises FmdiffError if a command's resolved config holds a value that no run could use.

    Where an integer is asked for, 1e5 becomes 100000.
    """
    for key in sorted(OmegaConf.missing_keys(cfg)):
        group, dot, _ = key.partition(".")
        choice = f"{group}={cfg.choices.get(group)} " if dot else ""
        raise FmdiffError(f"{key}= is needed; fmdiff {command} {choice}--help says what it is")
    for key, rule in (RULES | OWN_RULES.get(command, {})).items():
        value = _value(cfg, key)
        if value is ABSENT or rule.passes(value):
            continue
        if not rule.passes(integers.whole(value)):
            raise FmdiffError(
                f"{key}={_typed(value)}: must be {rule.says}{_cure(command, key, value, rule)}"
            )
        OmegaConf.update(cfg, key, integers.whole(value))
    for key, value in leaves(OmegaConf.to_container(cfg)):
        if isinstance(value, float) and math.isnan(value) and not key.startswith("cond."):
            raise FmdiffError(f"{key}=nan: must be a number")
    extras.check(cfg)
    combinations.check(command, cfg)
    integers.of_classes(cfg)


def _cure(command: str, key: str, value: Any, rule: Rule) -> str:
    """The end of a sentence: how to give several values of a key that takes one."""
    if not isinstance(value, list) or not value:
        return ""
    if command == "evaluate" and f"grid.{key}" in RULES:
        return f"; several are grid.{key}={_typed(value)}"
    if all(rule.passes(item) for item in value):
        return f"; for several runs add -m and write {key}={','.join(map(_typed, value))}"
    return ""


def check_types(cfg: DictConfig, default: DictConfig, keys: Iterable[str]) -> None:
    """Raises FmdiffError if a number, flag or list has another type than its default in the YAML.

    default: the config of the same choices with all keys unchanged.
    """
    for key in sorted(set(keys) - SEVERAL_TYPES):
        value, usual = _value(cfg, key), _value(default, key)
        if ABSENT in (value, usual) or value is None or usual is None:
            continue
        for kind, says in ((bool, "true or false"), ((int, float), "a number"), (list, "a list")):
            if isinstance(usual, kind):
                if not isinstance(value, kind) or isinstance(value, bool) != isinstance(
                    usual, bool
                ):
                    raise FmdiffError(
                        f"{key}={_typed(value)}: must be {says} like its default {_typed(usual)}"
                    )
                break


def _value(cfg: DictConfig, key: str) -> Any:
    try:
        value = OmegaConf.select(cfg, key, default=ABSENT)
    except ValueError:  # a part of the key is not a mapping
        return ABSENT
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _typed(value: Any) -> str:
    """Format a value as it is typed on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
