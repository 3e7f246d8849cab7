"""Adam for networks so small that its bookkeeping costs more than its arithmetic.

torch.optim looks up parameters and moments anew in every step. Here they are looked up once. The
update is torch's own fused kernel, and state dicts are interchangeable with torch.optim's.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


class _Lean(torch.optim.Optimizer):
    """A faster step() for torch.optim.Adam and AdamW with fused=true, and their own otherwise."""

    kernel: Callable[..., Any]  # updates all parameters of a group at once
    grad_scale: Tensor | None = None  # the fused step divides the gradients by it

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lists: list[Lists] | None = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.lists = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self.lists = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        lists = self.lists or []
        gradients = [[p.grad for p in parameters] for parameters, *_ in lists]
        if not lists or closure is not None or any(g is None for row in gradients for g in row):
            loss = super().step(closure)  # creates the states that are missing
            self.lists = self._tensors()
            return loss
        for group, row, (parameters, means, squares, steps) in zip(
            self.param_groups, gradients, lists, strict=True
        ):
            torch._foreach_add_(steps, 1)
            self.kernel(
                parameters,
                row,
                means,
                squares,
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
                grad_scale=self.grad_scale,
            )
        return None

    step.hooked = True  # type: ignore[attr-defined]  # torch would wrap it for its profiler

    def _tensors(self) -> list[Lists] | None:
        """Parameters, first and second moments and steps of each group.

        It is None if the fused kernel cannot take them.
        """
        lists: list[Lists] = []
        for group in self.param_groups:
            parameters = group["params"]
            states: list[Any] = [self.state.get(p) for p in parameters]
            kinds = {(p.device, p.dtype) for p in parameters}
            odd = group["amsgrad"] or group["maximize"] or not group["fused"]
            if odd or len(kinds) > 1 or not all(states):
                return None
            means, squares, steps = (
                [state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step")
            )
            lists.append((parameters, means, squares, steps))
        return lists


class Adam(_Lean, torch.optim.Adam):
    """Adam (Kingma & Ba 2015, arXiv:1412.6980), with the options of torch.optim.Adam."""

    kernel = staticmethod(torch._fused_adam_)


class AdamW(_Lean, torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), with torch.optim.AdamW's options."""

    kernel = staticmethod(torch._fused_adamw_)
