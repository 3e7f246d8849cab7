"""Optimisers: Adam and AdamW without overhead, Muon, and a schedule-free AdamW."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fmdiff.build import build, kind
from fmdiff.errors import FmdiffError

Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


class _Lean(torch.optim.Optimizer):
    """A faster step() for torch.optim.Adam and AdamW with fused=true, and their own otherwise.

    torch.optim looks up parameters and moments anew in every step, which costs small networks more
    than the arithmetic. Here they are looked up once. The update is torch's own fused kernel, and
    state dicts are interchangeable with torch.optim's.
    """

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


LEAST = 16  # inputs and outputs of a layer whose weight Muon updates


def _need(allowed: str, right: bool, **option: object) -> None:
    """Raises FmdiffError for a value that is not right."""
    if not right:
        [(key, value)] = option.items()
        raise FmdiffError(f"optim.{key}={value} must be {allowed}")


def built(spec: Mapping[str, Any], net: nn.Module) -> torch.optim.Optimizer:
    """The optimiser that a YAML describes, of all parameters of a network.

    Raises FmdiffError for one whose step needs a closure, as torch.optim.LBFGS.
    """
    chosen = kind(spec["_target_"])
    parameters = parted(net) if issubclass(chosen, Muon) else list(net.parameters())
    optimizer: torch.optim.Optimizer = build(spec, parameters, base=torch.optim.Optimizer)
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise FmdiffError(
            f"optim: {chosen.__name__} asks for the loss several times a step, and a training "
            "step computes it once; choose adam, adamw, muon or schedule_free"
        )
    return optimizer


def moments(spec: Mapping[str, Any]) -> int:
    """How many numbers an optimiser keeps for a weight: Adam 2, Muon 1. One step tells.

    spec: its YAML.
    """
    net = nn.Linear(2 * LEAST, 2 * LEAST, bias=False, device="cpu")
    net.weight.grad = torch.zeros_like(net.weight)
    optimizer = built(spec, net)
    optimizer.step()
    state = optimizer.state[net.weight].values()
    return sum(v.numel() for v in state if isinstance(v, Tensor)) // net.weight.numel()


def parted(net: nn.Module) -> list[dict[str, Any]]:
    """The parameters of a network in two groups: hidden weights, and all others.

    Hidden are the weights of linear layers and convolutions with at least LEAST inputs and LEAST
    outputs. So the first and the last layer of images and points, which have fewer, embeddings,
    biases and gains are among the others.
    """
    layers = (m for m in net.modules() if isinstance(m, (nn.Linear, _ConvNd)))
    large = {id(m.weight) for m in layers if min(m.weight.shape[:2]) >= LEAST}
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for parameter in net.parameters():
        sides[id(parameter) not in large].append(parameter)
    return [
        {"params": parameters, "hidden": hidden}
        for parameters, hidden in zip(sides, (True, False), strict=True)
        if parameters
    ]


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearly U V^T for matrices U S V^T (B, m, n): singular values between 0.68 and 1.13.

    X <- a X + (b A + c A^2) X with A = X X^T, `steps` times, from X / |X|. It is the iteration of
    Newton and Schulz with the coefficients of Jordan et al. 2024 (kellerjordan.github.io/posts/
    muon), in bfloat16 where the device multiplies such matrices fast. Singular values below 1e-3
    of |X| stay smaller.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    fast = matrices.device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    x = matrices.to(torch.bfloat16 if fast else torch.float32)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for hidden weights, and AdamW for all others (Jordan et al. 2024).

    For a hidden weight W with gradient G, a matrix of m outputs and n inputs (those of a
    convolution times its kernel):

        M <- momentum M + (1 - momentum) G
        O  = orthogonal(momentum M + (1 - momentum) G)
        W <- (1 - rate weight_decay) W - rate 0.2 sqrt(max(m, n)) O

    The factor gives the update the size of AdamW's (Liu et al. 2025, arXiv:2502.16982), so one
    learning rate serves both groups; that of the others is `others` times as large.
    params: the groups of `parted`.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        iterations: int = 5,
        weight_decay: float = 0.01,
        others: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        _need("a number from 0 to below 1", 0 <= momentum < 1, momentum=momentum)
        whole = isinstance(iterations, int) and iterations >= 1
        _need("an integer >= 1", whole, iterations=iterations)
        _need("a number >= 0", weight_decay >= 0, weight_decay=weight_decay)
        _need("a number > 0", others > 0, others=others)
        sizes = {"momentum": momentum, "iterations": iterations, "others": others}
        moments = {"betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {"lr": lr, **sizes, **moments})
        for group in self.param_groups:
            group["fused"] = not group["hidden"]  # torch then loads `step` onto the device

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            pairs = [(p, p.grad) for p in group["params"] if p.grad is not None]
            if pairs:
                update = self._hidden if group["hidden"] else self._others
                update(group, *map(list, zip(*pairs, strict=True)))

    def _states(self, parameters: list[Tensor], *names: str) -> list[list[Tensor]]:
        """The tensors of each name, zeros in the first step."""
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {name: torch.zeros_like(p) for name in names}
        return [[self.state[p][name] for p in parameters] for name in names]

    def _hidden(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> None:
        rate, momentum = group["lr"], group["momentum"]
        (means,) = self._states(parameters, "momentum_buffer")
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, means, momentum)
        alike: dict[tuple[int, ...], list[int]] = {}
        for i, update in enumerate(ahead):
            alike.setdefault(update.flatten(1).shape, []).append(i)
        torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        for shape, places in alike.items():
            matrices = torch.stack([ahead[i].flatten(1) for i in places])
            updates = orthogonal(matrices, group["iterations"])
            factor = -0.2 * rate * math.sqrt(max(shape))
            for i, update in zip(places, updates, strict=True):
                parameters[i].add_(update.reshape(parameters[i].shape), alpha=factor)

    def _others(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> None:
        means, squares = self._states(parameters, "exp_avg", "exp_avg_sq")
        for p in parameters:
            self.state[p].setdefault("step", torch.zeros((), device=p.device))
        steps = [self.state[p]["step"] for p in parameters]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            parameters,
            gradients,
            means,
            squares,
            [],
            steps,
            lr=group["lr"] * group["others"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


class ScheduleFree(torch.optim.Optimizer):
    """AdamW that averages in place of a falling learning rate, from the package `schedulefree`.

    The network's weights are y, at which gradients are taken, and the weights to use are their
    running average x (Defazio et al. 2024, arXiv:2405.15682, with warm-up by the squared rate):

        y   = (1 - beta1) z + beta1 x
        z  <- z - rate (AdamW's direction at y, without momentum)
        x  <- (1 - c) x + c z,   c = rate_max^2 / sum of rate_max^2 so far

    The state holds z; `average` gives x. The learning rate should not fall.
    """

    def __init__(
        self, params: Iterable[Tensor], betas: tuple[float, float] = (0.9, 0.999), **options: Any
    ) -> None:
        from schedulefree import AdamWScheduleFree

        inside = all(0 < beta < 1 for beta in betas)
        _need("two numbers between 0 and 1", inside, betas=betas)
        self.inner = AdamWScheduleFree(params, betas=betas, **options)
        super().__init__(self.inner.param_groups, self.inner.defaults)
        self._share()
        self.inner.train()

    def _share(self) -> None:
        """Give the package's optimiser the groups and the state, which loading replaces."""
        self.inner.param_groups, self.inner.state = self.param_groups, self.state

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update y and z."""
        self._share()
        return self.inner.step(closure)

    @torch.no_grad()
    def average(self) -> list[Tensor]:
        """The average x of each parameter, in their order: y before the first step."""
        return [
            p.lerp(self.state[p]["z"], 1 - 1 / group["betas"][0]) if self.state[p] else p.clone()
            for group in self.param_groups
            for p in group["params"]
        ]
