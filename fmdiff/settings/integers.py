"""Integers as people type them: 1e5 stands for 100000 where an integer is asked for."""

import inspect
from collections.abc import Iterator
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf

from fmdiff.build import locate
from fmdiff.errors import FmdiffError

EXACT = 2.0**53  # beyond it, a float stands for several integers


def whole(value: Any) -> Any:
    """The value with floats like 1e5 as integers, also in a list. Others stay as they are."""
    if isinstance(value, list):
        return [whole(item) for item in value]
    exact = isinstance(value, float) and value.is_integer() and abs(value) < EXACT
    return int(value) if exact else value


def of_classes(cfg: DictConfig) -> None:
    """Write 1e2 as 100 where the class of a group annotates a parameter as an integer.

    Raises FmdiffError for 2.5 there.
    """
    for group, node in ((str(group), node) for group, node in cfg.items()):
        if not isinstance(node, DictConfig) or node.get("_target_") is None:
            continue
        values = OmegaConf.to_container(node)
        assert isinstance(values, dict)
        floats = {str(key): value for key, value in values.items() if _has_float(value)}
        if not floats:
            continue
        parameters = inspect.signature(locate(node["_target_"])).parameters
        for key, value in floats.items():
            types = set(_types(parameters[key].annotation)) if key in parameters else set()
            if int not in types or float in types:
                continue
            integers = whole(value)
            if _has_float(integers):
                asked = "a list of integers" if isinstance(value, list) else "an integer"
                raise FmdiffError(f"{group}.{key}={value}: must be {asked}")
            node[key] = integers


def _has_float(value: Any) -> bool:
    return any(map(_has_float, value)) if isinstance(value, list) else isinstance(value, float)


def _types(annotation: Any) -> Iterator[Any]:
    """The types in an annotation: list[int] | None holds list, int and None."""
    yield annotation
    for part in get_args(annotation):
        yield from _types(part)
