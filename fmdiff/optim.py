"""Adam for networks so small that its bookkeeping costs more than its arithmetic.

torch.optim looks up parameters, gradients and moments anew in every step; here that is done once.
The update is torch's own fused kernel, and states are exchanged with torch.optim's freely.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


class _Lean(torch.optim.Optimizer):
    """step() of torch.optim.Adam and AdamW with fused=true, and theirs in any other case."""

    kernel: Callable[..., Any]  # that all of a group goes to

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.lists: list[Lists] | None = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.lists = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self.lists = None

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Any:  # type: ignore[override]
        lists = self.lists or []
        grads = [[p.grad for p in parameters] for parameters, *_ in lists]
        if not lists or closure is not None or any(g is None for of in grads for g in of):
            done = super().step(closure)  # makes the states where there are none
            self.lists = self._found()
            return done
        for group, of, (parameters, means, squares, steps) in zip(
            self.param_groups, grads, lists, strict=True
        ):
            torch._foreach_add_(steps, 1)
            self.kernel(
                *(parameters, of, means, squares, [], steps),
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
                grad_scale=getattr(self, "grad_scale", None),  # as torch's own fused step
            )
        return None

    step.hooked = True  # type: ignore[attr-defined]  # torch would wrap it for its profiler

    def _found(self) -> list[Lists] | None:
        """Parameters, first and second moments and steps of each group; None: not for us."""
        found = []
        for group in self.param_groups:
            parameters = group["params"]
            states: list[Any] = [self.state.get(p) for p in parameters]
            kinds = {(p.device, p.dtype) for p in parameters}
            odd = group["amsgrad"] or group["maximize"] or not group["fused"]
            if odd or len(kinds) > 1 or not all(states):
                return None
            columns = ([s[key] for s in states] for key in ("exp_avg", "exp_avg_sq", "step"))
            found.append((parameters, *columns))
        return found  # type: ignore[return-value]


class Adam(_Lean, torch.optim.Adam):
    """Kingma & Ba 2015, arXiv:1412.6980; the options of torch.optim.Adam."""

    kernel = staticmethod(torch._fused_adam_)


class AdamW(_Lean, torch.optim.AdamW):
    """Loshchilov & Hutter 2019, arXiv:1711.05101; the options of torch.optim.AdamW."""

    kernel = staticmethod(torch._fused_adamw_)
