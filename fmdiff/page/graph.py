"""A function of tensors as a list of operations, which graph.js runs in a browser.

PyTorch traces the function at two sizes of the batch. A number that differs between the two is a
multiple of the size, so the list holds for batches of any size.
"""

import copy
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.path import Kind

Tensors = dict[str, Tensor]
Function = Callable[[Tensors], Tensor]
SIZES = (2, 3)  # of the batches at which a function is traced
# the types of numbers in the browser; those of integers hold truth values too
TYPES = {torch.float64: "f64", torch.float32: "f32", torch.int64: "i32", torch.bool: "i32"}
STORAGE = {"f16": torch.float16, "f32": torch.float32, "f64": torch.float64, "i32": torch.int32}
# operations that leave their first argument as it is
SAME = frozenset({"_assert_tensor_metadata", "contiguous", "dropout", "clone", "alias", "detach"})


@cache
def vocabulary() -> frozenset[str]:
    """The names of the operations that the browser knows."""
    files = sorted(Path(__file__).parent.glob("*.js"))
    return frozenset(
        name for f in files for name in re.findall(r'^ *op\("(\w+)"', f.read_text("utf-8"), re.M)
    )


@dataclass
class Graph:
    """A function of named tensors as operations on numbered values.

    Values are the tensors, then the inputs, then the results of the operations in the order in
    which they run. `output` is the one that the function returns. Inputs and
    operations have a shape and a type. In a shape and in an argument of an operation {"B": k}
    stands for k times the size of the batch, {"v": i} for value i and {"sign": 1} for infinity.
    """

    inputs: list[dict[str, Any]]
    tensors: list[Tensor]
    ops: list[dict[str, Any]]
    output: int

    @classmethod
    def of(cls, function: Function, inputs: Tensors, net: nn.Module | None = None) -> "Graph":
        """The graph of function(inputs), for inputs of shape () or (SIZES[0], *).

        net: the network that the function calls, if it calls one. Raises FmdiffError for an
        operation that the browser does not know, and for a function whose course depends on the
        size of the batch.
        """
        first, second = (
            _traced(function, {name: _rows(value, size) for name, value in inputs.items()}, net)
            for size in SIZES
        )
        parts = _joined([first.inputs, first.ops], [second.inputs, second.ops])
        return cls(parts[0], first.tensors, parts[1], first.output)

    def data(self) -> dict[str, Any]:
        """The operations, and where each tensor lies in the blob, as JSON."""
        offset, tensors = 0, []
        for tensor in self.tensors:
            storage = _storage(tensor)
            tensors.append(
                {
                    "shape": list(tensor.shape),
                    "type": TYPES[tensor.dtype],
                    "storage": storage,
                    "offset": offset,
                }
            )
            offset += tensor.numel() * STORAGE[storage].itemsize
        parts = {"inputs": self.inputs, "ops": self.ops, "output": self.output}
        return {"tensors": tensors, **parts}

    def blob(self) -> bytes:
        """The numbers of all tensors, one after the other.

        Each is stored byte by byte: the first bytes of all its numbers, then the second ones, and
        so on, which gzip packs better.
        """
        parts = []
        for tensor in self.tensors:
            number = tensor.detach().to(STORAGE[_storage(tensor)]).contiguous().flatten()
            parts.append(number.view(torch.uint8).view(-1, number.itemsize).T.reshape(-1))
        return torch.cat(parts).numpy().tobytes() if parts else b""


def field_graph(of: Field, kind: Kind, inputs: Sequence[str] | None = None) -> Graph:
    """The graph of of.predict(x, t, kind[, s]) for labels y and at scale w of guidance.

    Its inputs are x (B, *shape), t (), and those of y (B,), s () and w () that `inputs` names: by
    default y for a field with classes, s for a flow map and w for a network that knows it. s = t
    asks a flow map for its velocity. Points are computed in float64, images in float32, times in
    float64. Raises FmdiffError as `Graph.of` does.
    """
    points = len(of.shape) == 1
    dtype = torch.float64 if points else torch.float32
    of = copy.deepcopy(of)
    if of.net is not None:
        of = of.to("cpu", dtype)
    time = torch.tensor(0.5, dtype=torch.float64)
    examples = {
        "x": torch.zeros(SIZES[0], *of.shape, dtype=dtype),
        "t": time,
        "y": torch.zeros(SIZES[0], dtype=torch.int64),
        "s": time + 0.25,
        "w": torch.ones((), dtype=torch.float64),
    }
    names = usual_inputs(of) if inputs is None else inputs

    def predict(values: Tensors) -> Tensor:
        bound: Any = of if "y" not in values else of.bind(values["y"])
        bound = bound if "w" not in values else bound.at_scale(values["w"])
        end = {"s": values["s"]} if "s" in values else {}
        answer: Tensor = bound.predict(values["x"], values["t"], kind, **end)
        return answer

    return Graph.of(predict, {name: examples[name] for name in ("x", "t", *names)}, of.net)


def usual_inputs(of: Field) -> tuple[str, ...]:
    """Which of y, s and w a field has, beside x and t."""
    has = {"y": of.classes > 0, "s": of.two_times and of.net is not None, "w": bool(of.scales)}
    return tuple(name for name, there in has.items() if there)


def rounded(of: Field) -> Field:
    """A copy of a field whose network has its weights in half precision's digits."""
    twin = copy.deepcopy(of)
    if twin.net is not None:
        for parameter in twin.net.parameters():
            parameter.data = parameter.data.half().to(parameter.dtype)
    return twin


def _storage(tensor: Tensor) -> str:
    """The smallest type that holds all numbers of a tensor exactly."""
    if not tensor.is_floating_point():
        return "i32"
    number = tensor.double()
    exact = (name for name in ("f16", "f32") if (number.to(STORAGE[name]) == number).all())
    return next(exact, "f64")


def _rows(value: Tensor, size: int) -> Tensor:
    return value if not value.ndim else value[:1].repeat(size, *[1] * (value.ndim - 1))


class _Call(nn.Module):
    def __init__(self, function: Function, net: nn.Module | None) -> None:
        super().__init__()
        self.function, self.net = function, net

    def forward(self, inputs: Tensors) -> Tensor:
        return self.function(inputs)


def _traced(function: Function, inputs: Tensors, net: nn.Module | None) -> Graph:
    """The graph at one size of the batch."""
    with torch.no_grad():
        program = torch.export.export(_Call(function, net), (inputs,), strict=False)
    signature = program.graph_signature
    weights = {**program.state_dict, **program.constants}
    sources = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    values: dict[Any, Any] = {}
    nodes = list(program.graph.nodes)
    constants = [n for n in nodes if n.op == "placeholder" and n.name in sources and n.users]
    arguments = [n for n in nodes if n.op == "placeholder" and n.name in signature.user_inputs]
    for node in (*constants, *arguments):
        values[node] = {"v": len(values)}
    ops: list[dict[str, Any]] = []
    count = len(values)
    for node in nodes:
        if node.op != "call_function":
            continue
        name = _name(node)
        if name in SAME:
            values[node] = _plain(node.args[0], values)
            continue
        if name not in vocabulary():
            raise FmdiffError(
                f"a page cannot play this model: its operation {node.target} is none of those "
                "that a page knows"
            )
        values[node] = {"v": count + len(ops)}
        ops.append({"op": name, "args": _arguments(node, values), **_form(node.meta["val"])})
    names = [node.name.removeprefix("inputs_") for node in arguments]
    (output,) = next(n for n in nodes if n.op == "output").args[0]
    forms = [{"name": name, **_form(inputs[name])} for name in names]
    tensors = [weights[sources[node.name]] for node in constants]
    return Graph(forms, tensors, ops, values[output]["v"])


def _name(node: Any) -> str:
    if node.target is operator.getitem:
        return "getitem"
    return str(node.target.overloadpacket.__name__)


def _arguments(node: Any, values: Mapping[Any, Any]) -> list[Any]:
    """All arguments in the order of the operation's signature, with its defaults."""
    if node.target is operator.getitem:
        return [_plain(a, values) for a in node.args]
    schema = node.target._schema.arguments
    args = list(node.args)
    for argument in schema[len(args) :]:
        args.append(node.kwargs.get(argument.name, argument.default_value))
    return [_plain(a, values) for a in args]


def _plain(value: Any, values: Mapping[Any, Any]) -> Any:
    """An argument as JSON."""
    if isinstance(value, torch.fx.Node):
        return values[value]
    if isinstance(value, list | tuple):
        return [_plain(v, values) for v in value]
    if isinstance(value, float) and value in (torch.inf, -torch.inf):
        return {"sign": 1 if value > 0 else -1}
    return value if isinstance(value, int | float | str | None) else str(value)


def _form(value: Any) -> dict[str, Any]:
    """Shape and type of a result; of the first if there are several."""
    first = value[0] if isinstance(value, list | tuple) else value
    return {"shape": list(first.shape), "type": TYPES.get(first.dtype, str(first.dtype))}


def _joined(a: Any, b: Any) -> Any:
    """One operation from its traces at the two sizes."""
    if isinstance(a, dict):
        return {key: _joined(a[key], b[key]) for key in a}
    if isinstance(a, list) and len(a) == len(b):
        return [_joined(p, q) for p, q in zip(a, b, strict=True)]
    if a == b:
        return a
    if isinstance(a, int) and isinstance(b, int) and a * SIZES[1] == b * SIZES[0]:
        return {"B": a // SIZES[0]}
    raise FmdiffError("a page cannot play a model whose steps depend on the size of the batch")
