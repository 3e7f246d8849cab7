"""fmdiff evaluate of flow maps: against the exact map, and at several numbers of steps."""

from fmdiff.commands import grid
from fmdiff.commands.grid import Row
from fmdiff.metrics.metric import Metric


def row(cell, **bounds):
    """A row of a grid, with a metric for each interval."""
    metrics = {k: Metric(sum(v) / 2, 1000, interval=v) for k, v in bounds.items()}
    return Row(cell, 1.0, 1.0, metrics)


def steps(bounds, name="sw2", **more):
    return [row({**more, "steps": k}, **{name: v}) for k, v in bounds.items()]


def test_more_steps_that_are_worse_are_told_beyond_the_intervals_only():
    rows = steps({1: (2.0, 2.2), 2: (2.1, 2.6), 4: (2.3, 2.9), 8: (1.0, 1.2), 16: (1.1, 1.9)})
    assert grid.setbacks(rows) == [
        "more steps are worse by sw2: 2.1 [2, 2.2] at 1, 2.6 [2.3, 2.9] at 4"
    ]
    assert grid.setbacks(rows[:2]) == grid.setbacks(rows[3:]) == []
    # the order in which the steps were asked for does not matter
    assert grid.setbacks(rows[::-1]) == grid.setbacks(rows)


def test_a_later_best_is_what_still_later_steps_are_compared_with():
    (told,) = grid.setbacks(steps({1: (3, 4), 2: (5, 6), 4: (1, 2), 8: (3, 4)}))
    assert told.endswith("3.5 [3, 4] at 1, 5.5 [5, 6] at 2, 1.5 [1, 2] at 4, 3.5 [3, 4] at 8")


def test_steps_are_compared_within_one_sampler():
    rows = steps({1: (1, 2), 4: (3, 4)}, solver="jump") + steps({1: (9, 9.5)}, solver="euler")
    (told,) = grid.setbacks(rows)
    assert told.startswith("more steps are worse by sw2 (solver=jump): ")
    apart = steps({1: (1, 2)}, solver="jump") + steps({4: (3, 4)}, solver="euler")
    assert grid.setbacks(apart) == []
    evaluations = [row({"nfe": k}, sw2=v) for k, v in {10: (1, 2), 20: (3, 4)}.items()]
    assert grid.setbacks(evaluations)[0].startswith("more evaluations are worse by sw2: ")
    assert grid.setbacks([row({"w": k}, sw2=(k, k + 0.5)) for k in (1, 2, 3)]) == []


def test_the_direction_of_a_metric_counts():
    falls = {1: (0.8, 0.9), 4: (0.5, 0.6)}
    assert len(grid.setbacks(steps(falls, "agreement"))) == 1
    assert grid.setbacks(steps(falls)) == []
    rises = {1: (0.5, 0.6), 4: (0.8, 0.9)}
    assert grid.setbacks(steps(rises, "agreement")) == grid.setbacks(steps(rises, "nll")) == []
    assert len(grid.setbacks(steps(rises))) == 1
    silent = [Row({"steps": k}, k, 1.0, {"sw2": Metric(k, 9)}) for k in (1, 4)]
    assert grid.setbacks(silent) == []
