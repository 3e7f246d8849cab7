"""Formulas typed by a user, evaluated without running code."""

import ast
import math
import operator
from collections.abc import Callable

import torch
from torch import Tensor

from fmdiff.errors import FmdiffError, nearest

LONGEST = 300  # characters
OPERATORS: dict[type, Callable[..., Tensor]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: torch.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    name: getattr(torch, name)
    for name in ("sin", "cos", "tan", "exp", "log", "sqrt", "tanh", "sigmoid", "abs")
}
CONSTANTS = {"pi": math.pi, "e": math.e}


class Formula:
    """A formula of a few variables, like "sin(pi*t/2)", as a function of tensors.

    It may hold numbers, pi, e, + - * /, `**` or `^` for powers, brackets and the functions sin cos
    tan exp log sqrt tanh sigmoid abs. `Formula(text, ("x", "t"), "system.u")(x, t)` has the shape,
    dtype and device of its arguments, which broadcast. torch.func can differentiate it.

    Raises FmdiffError, naming `option`, for anything else.
    """

    def __init__(self, text: str, variables: tuple[str, ...], option: str) -> None:
        self.text, self.variables, self.option = str(text), variables, option
        if len(self.text) > LONGEST:
            raise self._error(f"is longer than {LONGEST} characters")
        try:
            # in Python ^ binds more loosely than +; in a formula it is a power
            self.tree = ast.parse(self.text.replace("^", "**").strip(), mode="eval").body
            self(*(torch.full((), 0.5) for _ in variables))
        # torch raises a RuntimeError for a number beyond float32, Python an OverflowError for one
        # beyond float64
        except (SyntaxError, ValueError, OverflowError, RuntimeError, MemoryError) as error:
            raise self._error("cannot be read as a formula") from error

    def __call__(self, *values: Tensor) -> Tensor:
        like = sum(values)  # has the shape to which the variables broadcast
        assert isinstance(like, Tensor)
        return torch.zeros_like(like) + self._value(
            self.tree, dict(zip(self.variables, values, strict=True)), like
        )

    def __repr__(self) -> str:
        return repr(self.text)

    def _value(self, node: ast.AST, values: dict[str, Tensor], like: Tensor) -> Tensor:
        match node:
            case ast.Constant(value=bool()):
                pass
            case ast.Constant(value=int() | float() as number):
                return torch.full_like(like, float(number))
            case ast.Name(id=name) if name in values:
                return values[name]
            case ast.Name(id=name) if name in CONSTANTS:
                return torch.full_like(like, CONSTANTS[name])
            case ast.Name(id=name):
                raise self._error(f"has the unknown name {name!r}; {nearest(name, self._names())}")
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                a, b = (self._value(side, values, like) for side in (left, right))
                return OPERATORS[type(op)](a, b)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
                return OPERATORS[type(op)](self._value(operand, values, like))
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]):
                if name in FUNCTIONS:
                    return FUNCTIONS[name](self._value(argument, values, like))
                raise self._error(f"has the unknown function {name!r}; {nearest(name, FUNCTIONS)}")
        raise self._error(
            f"may hold numbers, {', '.join(self._names())}, + - * / ** ^, brackets and "
            f"{' '.join(FUNCTIONS)} alone"
        )

    def _names(self) -> list[str]:
        return [*self.variables, *CONSTANTS]

    def _error(self, what: str) -> FmdiffError:
        text = self.text if len(self.text) <= 80 else f"{self.text[:80]}..."
        return FmdiffError(f'{self.option}="{text}" {what}')
