"""Stops the building of a network that outgrows the weights of its file."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registry
from torch.overrides import TorchFunctionMode

from fmdiff.build import contract
from fmdiff.errors import FmdiffError
from fmdiff.runs.content import TITLE

REGISTRATIONS = (
    registry.register_module_parameter_registration_hook,
    registry.register_module_buffer_registration_hook,
    registry.register_module_module_registration_hook,
)
FACTORIES = (
    torch.empty,
    torch.zeros,
    torch.ones,
    torch.full,
    torch.rand,
    torch.randn,
    torch.arange,
)


@contextlib.contextmanager
def bounded(
    spec: Mapping[str, Any], state: Mapping[str, Tensor] | None, title: str = TITLE
) -> Iterator[None]:
    """Within the block, building a network stops where it outgrows the weights of its file.

    spec: describes the network. It is not bounded if its class is the user's own, nor without a
    state. title: what a message calls the checkpoint. Raises FmdiffError in the block, before the
    memory is taken.
    """
    if state is None or contract(str(spec["_target_"]).rpartition(".")[0]) is None:
        yield
        return
    size = sum(value.numel() for value in state.values())
    left = {"parts": 1000 + 20 * len(state), "numbers": 2**20 + 2 * size}

    def take(numbers: int, parts: int) -> None:
        left["numbers"] -= numbers
        left["parts"] -= parts
        if min(left.values()) < 0:
            raise FmdiffError(
                f"{title} asks for a model that is far larger than the {size:,} numbers it holds"
            )

    def count(module: nn.Module, name: str, part: Any) -> None:
        take(part.numel() if isinstance(part, Tensor) else 0, 1)

    with contextlib.ExitStack() as stack:
        for register in REGISTRATIONS:
            stack.callback(register(count).remove)
        stack.enter_context(_Sizes(lambda numbers: take(max(0, numbers - left["numbers"]), 0)))
        yield


class _Sizes(TorchFunctionMode):
    """Tells `receive` how many numbers a new tensor will have, before it is made."""

    def __init__(self, receive: Callable[[int], None]) -> None:
        super().__init__()
        self.receive = receive

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in FACTORIES:
            sizes = args[0] if args and isinstance(args[0], tuple | list) else args
            self.receive(math.prod(n for n in sizes if isinstance(n, int)))
        return func(*args, **(kwargs or {}))
