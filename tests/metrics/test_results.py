"""results.json: one form for every command, which can be repeated and which old files reach."""

import json

import pytest

from fmdiff.errors import FmdiffError
from fmdiff.metrics import results
from fmdiff.metrics.metric import Metric

ROWS = [
    {"t": 0.25, "fm": 1.0, "fm_error": 0.1, "cfm": 3.5, "irreducible": 2.0, "size": 8.0}
    | {"gap": 0.5, "gap_error": 0.3},
    {"t": 0.75, "fm": 3.0, "fm_error": 0.3, "cfm": 4.5, "irreducible": 1.0, "size": 4.0}
    | {"gap": 0.5, "gap_error": 0.4},
]
SETTINGS = {"against": "exact", "kind": "v", "n": None, "seed": 3}
COMMON = ["format", "command", "metrics", "warnings"]


def test_errors_over_time_are_metrics():
    metrics = results.over_time(ROWS, 500)
    values = {name: metric.value for name, metric in metrics.items()}
    assert values == {"fm": 2.0, "cfm": 4.0, "irreducible": 1.5, "gap": 0.5}
    assert metrics["fm"].se == 0.2 and metrics["gap"].se == pytest.approx(0.25)
    assert metrics["fm"].extra == {"size": 6.0} and metrics["fm"].n == 500


def test_every_command_writes_the_same_form(tmp_path):
    metrics = {"sw2": Metric(0.5, 100, se=0.1)}
    results.write(tmp_path, "sample", {"n": 100}, metrics, ["few", "few"], nfe_counted=56.0)
    content = json.loads((tmp_path / "results.json").read_text())
    assert [*content] == [*COMMON, "nfe_counted", "config", "versions"]
    assert content["metrics"] == {"sw2": {"value": 0.5, "n": 100, "se": 0.1}}
    assert content["warnings"] == ["few"]
    results.write(
        tmp_path, "evaluate", SETTINGS, results.over_time(ROWS, 500), kind="v", rows=ROWS
    )
    content = json.loads((tmp_path / "results.json").read_text())
    assert [*content] == [*COMMON, "kind", "rows", "config", "versions"]
    assert content["rows"] == ROWS and content["metrics"]["fm"]["value"] == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_errors_against_the_exact_field_can_be_repeated(tmp_path):
    file = results.write(tmp_path, "evaluate", SETTINGS, results.over_time(ROWS, 500), rows=ROWS)
    content = results.recipe(file)
    assert content["config"] == SETTINGS and content["metrics"]["cfm"]["value"] == 4.0


def test_the_old_form_of_such_errors_can_be_repeated_too(tmp_path):
    old = {"against": "exact", "kind": "v", "mean": {}, "rows": ROWS, "config": SETTINGS}
    (tmp_path / "results.json").write_text(json.dumps(old))
    content = results.recipe(tmp_path / "results.json")
    assert content["config"] == SETTINGS and content["metrics"]["fm"]["value"] == 2.0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is no results.json of fmdiff evaluate"),
        ("[]", "is no results.json of fmdiff evaluate"),
        ('{"against": "exact", "rows": [], "config": {"n": 5}}', "is no results.json"),
        ('{"against": "exact", "rows": [3], "config": {"n": 5}}', "is no results.json"),
        ('{"format": 1, "command": "sample", "metrics": {}, "config": {}}', "by fmdiff sample"),
        ('{"format": 2, "command": "evaluate", "metrics": {}, "config": {}}', "of format 2"),
    ],
)
def test_what_cannot_be_repeated_is_refused(tmp_path, content, says):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(FmdiffError, match=says):
        results.recipe(tmp_path / "results.json")
