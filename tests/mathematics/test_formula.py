import math

import pytest
import torch

from fmdiff.errors import FmdiffError
from fmdiff.formula import Formula


@pytest.mark.parametrize(
    "text, value",
    [
        ("sin(pi*t/2)", math.sin(math.pi * 0.15)),
        ("1 - t^2", 1 - 0.09),
        ("1 - t**2", 1 - 0.09),
        ("-t^2 + 1", 1 - 0.09),
        ("2^t^2", 2**0.09),
        ("sqrt((1-t)*(1+t))", math.sqrt(0.91)),
        ("e", math.e),
        ("exp(-abs(t)) / 3e-1", math.exp(-0.3) / 0.3),
    ],
)
def test_a_formula_has_the_value_arithmetic_gives_it(text, value):
    t = torch.full((3, 2), 0.3, dtype=torch.float64)
    got = Formula(text, ("t",), "path.alpha")(t)
    assert got.shape == t.shape and got.dtype == t.dtype
    torch.testing.assert_close(got, torch.full_like(t, value))


def test_it_keeps_float32_and_broadcasts_its_variables():
    x, t = torch.ones(4, 1), torch.tensor(0.5)
    got = Formula("-2*x + t", ("x", "t"), "system.u")(x, t)
    assert got.dtype == torch.float32 and got.shape == (4, 1)
    assert (got == -1.5).all()


def test_it_can_be_differentiated():
    t = torch.tensor(0.3, dtype=torch.float64)
    slope = torch.func.grad(Formula("t^3", ("t",), "path.alpha"))(t)
    torch.testing.assert_close(slope, 3 * t**2)


@pytest.mark.parametrize(
    "text, says",
    [
        ("__import__('os').system('true')", "alone"),
        ("t.__class__", "alone"),
        ("(lambda: 1)()", "alone"),
        ("[t for t in (1,)]", "alone"),
        ("open(t)", "unknown function 'open'"),
        ("sinn(t)", "did you mean 'sin'"),
        ("t if t else 1", "alone"),
        ("s", "unknown name 's'"),
        ("True", "alone"),
        ("'a'", "alone"),
        ("t +", "cannot be read"),
        ("", "cannot be read"),
        ("t" + "+t" * 200, "longer than"),
        ("(" * 120 + "t" + ")" * 120, None),
        ("-" * 290 + "t", None),
        ("9**9**9**9**9", None),  # floats: no memory is filled
    ],
)
def test_anything_else_is_refused_in_one_sentence(text, says):
    if says is None:
        value = Formula(text, ("t",), "path.alpha")(torch.tensor(0.5))
        assert value.shape == ()
        return
    with pytest.raises(FmdiffError) as error:
        Formula(text, ("t",), "path.alpha")
    assert says in str(error.value) and "path.alpha" in str(error.value)
    assert "\n" not in str(error.value)
