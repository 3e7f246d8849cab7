"""Conditions as named tensors, and what is known of each."""

import math

import pytest
import torch

from fmdiff.condition import (
    LABEL,
    Condition,
    Form,
    alike,
    chosen,
    described,
    dropped,
    given,
    in_turn,
    join,
    label,
    named,
    null,
)
from fmdiff.errors import FmdiffError

NAN = math.nan
COLOUR = Form((3,), levels=("red", "green", "blue"))


def example(n=4):
    c = torch.arange(2.0 * n).view(n, 2)
    return Condition({LABEL: torch.arange(n) % 3, "c": c, "m": torch.ones(n, 1, 2, 2)})


def same(a, b):
    assert list(a.parts) == list(b.parts)
    for name, part in a.parts.items():
        torch.testing.assert_close(part, b.parts[name], rtol=0, atol=0, equal_nan=True)
    return True


def test_rows_are_taken_of_all_parts_alike():
    y = example(5)
    assert len(y) == 5
    for rows in (slice(1, 4), torch.tensor([4, 0, 0]), torch.tensor([True, False] * 2 + [True])):
        part = y[rows]
        assert len(part) == len(y.parts["c"][rows])
        assert torch.equal(part.parts["c"], y.parts["c"][rows])
        assert torch.equal(part.parts[LABEL], y.parts[LABEL][rows])
    pieces = y.split(2)
    assert [len(piece) for piece in pieces] == [2, 2, 1] and same(join(pieces), y)


def test_labels_keep_their_type_where_numbers_change_it():
    y = example().to("cpu", torch.float64)
    assert y.parts["c"].dtype == torch.float64 and y.parts[LABEL].dtype == torch.int64
    assert example().to("meta").parts["m"].device.type == "meta"


def test_labels_alone_stay_a_tensor():
    labels = torch.tensor([1, 0])
    assert given(labels, {}) is labels and given(None, {}) is None
    assert label(labels) is labels and named(labels) == {} and named(None) == {}
    y = given(labels, {"c": torch.zeros(2, 1)})
    assert label(y) is labels and list(named(y)) == ["c"]
    assert label(given(None, {"c": torch.zeros(2, 1)})) is None
    assert join([None, None]) is None
    assert torch.equal(join([labels, labels]), torch.tensor([1, 0, 1, 0]))


@pytest.mark.parametrize("names", [None, [], [LABEL], ["c"], ["c", LABEL], ["m"]])
def test_null_drops_the_named_parts_alone(names):
    y = example()
    out = null(y, 3, names)
    for name, part in y.parts.items():
        if names is not None and name not in names:
            assert torch.equal(out.parts[name], part)
        elif name == LABEL:
            assert (out.parts[LABEL] == 3).all()
        else:
            assert out.parts[name].isnan().all() and out.parts[name].shape == part.shape
    assert dropped(out, 3).all() == (names is None)
    labels = torch.tensor([0, 1])
    kept = names is not None and LABEL not in names
    assert torch.equal(null(labels, 3, names), labels if kept else torch.tensor([3, 3]))


def test_a_row_is_dropped_if_nothing_of_it_is_known():
    y = example(3)
    y.parts["c"][1:] = NAN
    y.parts["m"][1:] = NAN
    y.parts[LABEL] = torch.tensor([3, 3, 2])
    assert dropped(y, 3).tolist() == [False, True, False]
    y.parts["c"][1, 0] = 0.5  # half a vector is something
    assert not dropped(y, 3).any()
    assert dropped(torch.tensor([3, 0]), 3).tolist() == [True, False]


def test_rows_are_chosen_among_two():
    rows = torch.tensor([True, False, False, True])
    y = example()
    out = chosen(rows, null(y, 3), y)
    assert dropped(out, 3).tolist() == rows.tolist() and same(out[~rows], y[~rows])


@pytest.mark.parametrize(
    ("form", "value", "rows"),
    [
        (Form((1,)), 0.5, [[0.5]]),
        (Form((1,)), [0.5, 2], [[0.5], [2.0]]),
        (Form((1,)), [[0.5], [2]], [[0.5], [2.0]]),
        (Form((2,)), [1, 2], [[1.0, 2.0]]),
        (Form((2,)), [[1, 2], [3, None]], [[1.0, 2.0], [3.0, NAN]]),
        (Form((2,)), "nan", [[NAN, NAN]]),
        (Form((2,)), 7, [[7.0, 7.0]]),
        (Form((1, 2)), [[1, 2]], [[[1.0, 2.0]]]),
        (COLOUR, "green", [[0.0, 1.0, 0.0]]),
        (COLOUR, ["blue", "red"], [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]),
        (COLOUR, [0, 0.5, 0.5], [[0.0, 0.5, 0.5]]),
        (COLOUR, torch.eye(3, dtype=torch.float64), torch.eye(3).tolist()),
    ],
)
def test_values_are_rows_of_a_form(form, value, rows):
    out = form.rows(value, "cond.x")
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, torch.tensor(rows), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("form", "value", "says"),
    [
        (Form((2,)), [1, 2, 3], "cond.x has the shape [3]: a list of 2 numbers is needed"),
        (Form((2,)), [[1, 2], [3]], "a list of 2 numbers is needed"),
        (Form((2,)), "much", "cond.x='much': a list of 2 numbers is needed"),
        (Form((1,)), [], "is needed"),
        (Form((1,)), True, "cond.x=True: a number is needed"),
        (Form((1,)), 1e39, "cond.x holds an infinite number"),
        (Form((1,)), 10**400, "a number is needed"),
        (Form((1, 4, 4)), [[1.0]], "an array of shape [1, 4, 4] is needed"),
        (COLOUR, "grene", "cond.x=grene: did you mean 'green'?"),
        (COLOUR, {"a": 1}, "a list of 3 numbers, or a name (red, green, blue) is needed"),
    ],
)
def test_other_values_are_refused_in_a_sentence(form, value, says):
    with pytest.raises(FmdiffError) as error:
        form.rows(value, "cond.x")
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("form", [COLOUR, Form((1, 7, 7), (0.1,), (0.3,)), Form((2,))])
def test_a_form_comes_back_from_its_spec(form):
    assert Form.of(form.spec(), "run") == form


@pytest.mark.parametrize(
    "spec",
    [
        None,
        [],
        {"shape": []},
        {"shape": [0]},
        {"shape": [True]},
        {"shape": [2.0]},
        {"shape": "ab"},
        {"shape": [1, 1, 1, 1]},
        {"shape": [2**20, 2**20]},
        {"shape": [2], "mean": [0.0]},
        {"shape": [2], "mean": [0.0, NAN]},
        {"shape": [2], "std": [1.0, 0.0]},
        {"shape": [2], "std": "11"},
        {"shape": [2], "levels": ["a"]},
        {"shape": [2], "levels": "ab"},
    ],
)
def test_a_spec_of_no_form_is_refused(spec):
    with pytest.raises(FmdiffError, match="run describes a condition"):
        Form.of(spec, "run")


def test_conditions_take_turns():
    forms = {"a": Form((1,)), "b": Form((2,))}
    parts = dict(in_turn(forms, {"a": torch.tensor([[1.0], [2.0], [3.0]])}, range(4, 9)))
    assert parts["a"][:, 0].tolist() == [2.0, 3.0, 1.0, 2.0, 3.0]
    assert parts["b"].shape == (5, 2) and parts["b"].isnan().all()


def test_forms_are_alike_by_name_shape_and_levels():
    one = {"a": Form((2,), (1.0, 2.0)), "b": COLOUR}
    assert alike(one, {"b": COLOUR, "a": Form((2,))})
    assert not alike(one, {"a": Form((2,))}) and not alike(one, {"a": Form((3,)), "b": COLOUR})
    assert not alike(one, one | {"b": Form((3,), levels=("red", "blue", "green"))})
    assert described(one) == "the conditions a [2], b [3] (red, green, blue)"
    assert described({}) == "no conditions"
