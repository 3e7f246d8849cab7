"""The sums between two reports, and their form in a checkpoint."""

import math

import torch

from fmdiff.training.tally import Tally


def test_means_are_per_step_that_counted():
    tally = Tally()
    assert math.isnan(tally.mean(tally.loss))
    tally.add_costs(4.0, 6.0)
    tally.add(1.0, 2.0, 5.0)
    tally.add(3.0, 4.0, 6.0)
    assert tally.mean(tally.mse) == 5.5
    assert (tally.mean(tally.loss), tally.mean(tally.norm), tally.mean(tally.transport)) == (
        2,
        3,
        2,
    )
    tally.clear()
    assert tally == Tally()


def test_a_checkpoint_holds_six_numbers_and_older_ones_three_or_five():
    tally = Tally(1.5, 2.5, 3, 4.5, 5.5, 6.5)
    assert tally.tensor().dtype == torch.float64
    assert tally.tensor().tolist() == [1.5, 2.5, 3.0, 4.5, 5.5, 6.5]
    other = Tally()
    other.load(tally.tensor())
    assert other == tally
    for count in (3, 5):
        other.load(tally.tensor()[:count])
        assert math.isnan(other.mse)  # the sum of some of the steps would be wrong
        other.mse = 0.0
        assert other == (Tally(1.5, 2.5, 3) if count == 3 else Tally(1.5, 2.5, 3, 4.5, 5.5))
