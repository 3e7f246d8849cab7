"""A report says of which step and which weights its figures are."""

from pathlib import Path

from fmdiff.report.read import Result, Run
from fmdiff.report.results import headline, metrics_table


def test_figures_of_an_earlier_step_say_so():
    """Training has gone on to step 400 since the evaluation."""
    of = {"path": "run/best.ckpt", "step": 20, "weights": "ema", "sha256": "ab" * 32}
    content = {"checkpoint": of, "metrics": {"sw2": {"value": 0.5, "n": 100}}}
    result = Result(Path("run/samples/a"), 0.0, {}, {}, content)
    run = Run(Path("run"), "run", results=[result], metrics={"loss": [(20, 1.0), (400, 0.5)]})
    assert headline(run) == [("sw2 at step 20", "0.5")]
    run.metrics["loss"].pop()
    assert headline(run) == [("sw2", "0.5")]
    assert "best.ckpt (step 20, ema weights, abababababab)" in metrics_table(result)
    del of["sha256"]  # as earlier versions wrote it
    assert "best.ckpt (step 20, ema weights)" in metrics_table(result)
