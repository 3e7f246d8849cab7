"""What a step is given, without a network and without Lightning."""

import math
import subprocess
import sys

import torch
from test_coupled_training import batches

ALL = slice(None)


def free(**keys):
    return batches("independent", **keys)


def test_neither_lightning_nor_a_network_is_needed():
    code = "import sys, fmdiff.training.batches\nsys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_micro_batches_are_the_terms_of_the_draws_in_order():
    one = free(data={"conditional": True}, accumulate=3)
    steps, rows = range(4, 6), slice(30, 60)
    x, y, eps, t, augmentation = one.draw(steps, rows)
    terms = one.objective.terms(x, y, eps, t)
    parts = one(steps, rows)
    assert augmentation is None and [len(micro) for micro in parts] == [3, 3]
    for i, term in enumerate(terms):
        pieces = [micro[i] for step in parts for micro in step]
        assert all(len(piece) == 10 for piece in pieces)
        assert torch.equal(torch.cat(pieces), term)
    assert all(micro[-1] is None for step in parts for micro in step)


def test_steps_drawn_together_are_those_drawn_alone():
    one = free(data={"conditional": True})
    together = one.draw(range(3, 6), ALL)
    for i, k in enumerate(range(3, 6)):
        for whole, alone in zip(together[:4], one.draw(range(k, k + 1), ALL)[:4], strict=True):
            assert torch.equal(whole[60 * i : 60 * (i + 1)], alone)


def test_draws_are_rows_of_one_global_batch():
    one = free(data={"conditional": True}, label_dropout=0.5)
    whole = one.draw(range(3, 4), ALL)
    for part, want in zip(one.draw(range(3, 4), slice(8, 20))[:4], whole[:4], strict=True):
        assert torch.equal(part, want[8:20])
    assert not torch.equal(one.draw(range(4, 5), ALL)[2], whole[2])


def test_labels_are_dropped_per_sample_at_the_given_rate():
    one = free(data={"conditional": True, "batch_size": 4000})
    null = one.data.classes
    y = one.draw(range(0, 1), ALL)[1]
    rate = (y == null).float().mean().item()
    assert abs(rate - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 4000)
    assert 0 < y[: len(y) // 2].eq(null).sum() < len(y) // 2
    assert set(y.tolist()) == set(range(null + 1))
    for rate in (0.0, 1.0):
        one.label_dropout = rate
        assert (one.draw(range(0, 1), ALL)[1] == null).float().mean() == rate
