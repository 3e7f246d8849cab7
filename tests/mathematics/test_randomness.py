"""Draws are functions of (seed, purpose, counters)."""

import math
from itertools import pairwise

import pytest
import torch
from scipy.stats import kstest

from fmdiff.randomness import BLOCK, Brownian, generator, key, noise, permutation, positions


def test_a_key_depends_on_every_part_and_on_nothing_else():
    keys = [key(*parts) for parts in ((0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 0, 0))]
    keys += [key(0, "a", 1, 2), key(0, "a", 2, 1), key(0, "a", 12)]
    assert len(set(keys)) == len(keys)
    assert key(0, "a", 1, 2) == keys[5]
    assert all(0 <= k < 2**63 for k in keys)


def test_a_generator_is_fresh_each_time():
    first, second, other = (
        torch.randn(5, generator=generator(3, purpose, 7)) for purpose in ("x", "x", "y")
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_noise_does_not_touch_or_follow_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = noise(0, 10, (2,), 0, "start")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(noise(0, 10, (2,), 0, "start"), first)


@pytest.mark.parametrize("n", [1, 10, 1000])
def test_an_epoch_visits_each_example_once_in_its_own_order(n):
    orders = [permutation(0, epoch, n) for epoch in range(3)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(n))
    if n == 1000:
        assert not torch.equal(orders[0], orders[1])
        assert not torch.equal(orders[0], permutation(1, 0, n))


@pytest.mark.parametrize(("batch", "n"), [(8, 64), (7, 20), (50, 20), (20, 20)])
def test_training_steps_walk_through_the_epochs_without_loss(batch, n):
    steps = -(-4 * n // batch)
    walk = torch.cat([positions(5, step, batch, n) for step in range(steps)])
    wanted = torch.cat([permutation(5, epoch, n) for epoch in range(5)])
    assert torch.equal(walk[: 4 * n], wanted[: 4 * n])
    assert all(len(positions(5, step, batch, n)) == batch for step in range(steps))
    assert torch.equal(positions(5, 1, batch, n), walk[batch : 2 * batch])  # any step first


@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)])
def test_a_row_of_noise_depends_on_its_index_alone(shape):
    whole = noise(0, 200, shape, 1, "start")
    assert whole.shape == (200, *shape) and whole.dtype == torch.float32
    for start, stop in ((0, 1), (3, 10), (BLOCK, BLOCK + 1), (60, 130), (199, 200), (64, 128)):
        assert torch.equal(noise(start, stop, shape, 1, "start"), whole[start:stop])


def test_noise_differs_between_seeds_purposes_steps_and_rows():
    draws = [
        noise(0, 128, (2,), 1, "start"),
        noise(0, 128, (2,), 2, "start"),
        noise(0, 128, (2,), 1, "brownian"),
        noise(0, 128, (2,), 1, "start", 1),
    ]
    rows = torch.cat(draws)
    assert len(rows.unique(dim=0)) == len(rows)
    assert noise(64, 128, (2,), 1, "start", 0).ne(noise(0, 64, (2,), 1, "start", 1)).all()


def test_noise_is_standard_normal():
    """Kolmogorov-Smirnov; the seed is fixed, and a true law fails at p < 1e-3 once in 1,000."""
    draw = noise(0, 20_000, (3,), 0, "start")
    assert kstest(draw.flatten().numpy(), "norm").pvalue > 1e-3
    assert (torch.corrcoef(draw.T) - torch.eye(3)).abs().max() < 4 / 20_000**0.5
    lagged = torch.corrcoef(torch.stack([draw[:-BLOCK, 0], draw[BLOCK:, 0]]))[0, 1]
    assert lagged.abs() < 4 / 20_000**0.5


# --- Brownian motion ------------------------------------------------------------------------


def moved(walk, *times):
    """The increments (n, len(times) - 1) between the times."""
    at = torch.tensor(times, dtype=torch.float64)
    return torch.cat([walk(t, s) for t, s in pairwise(at)], 1)


TIMES = (0.0, 1e-5, 1 / 7, 0.25, 0.3, 1 / 3, 0.5, 0.75, 1 - 2e-6, 1.0)


@pytest.mark.parametrize("times", [TIMES, (0.0, 0.5, 1.0), tuple(k / 9 for k in range(10))])
def test_increments_are_independent_normal_and_of_the_variance_of_their_length(times):
    n = 20_000
    steps = moved(Brownian(0, n, (1,), 0), *times)
    z = steps / torch.tensor(times, dtype=torch.float64).diff().sqrt()
    off = (z.T @ z / n - torch.eye(len(times) - 1)).abs()
    assert (off < 4 * (2 / n) ** 0.5).all()
    for column in z.T:
        assert kstest(column.numpy(), "norm").pvalue > 1e-3


def test_increments_add_up_to_those_of_longer_steps():
    times = torch.linspace(0.1, 0.9, 38, dtype=torch.float64)
    coarse = Brownian(0, 50, (3,), 1)(times[0], times[-1])
    fine = Brownian(0, 50, (3,), 1)
    total = sum(fine(t, s) for t, s in pairwise(times))
    torch.testing.assert_close(total, coarse, rtol=0, atol=1e-12)
    assert coarse.std() > 0.5


def test_the_path_is_a_function_of_time_whatever_was_asked_before():
    times = [*TIMES, 0.123456789, 0.1234567891, 0.999, 2**-20, 3 * 2**-21]
    alone = {t: Brownian(5, 8, (2,), 3).at(t) for t in times}
    assert alone[0.0].eq(0).all() and torch.equal(
        alone[1.0], noise(5, 8, (2,), 3, "brownian").double()
    )
    walk = Brownian(5, 8, (2,), 3)
    for order in (times, times[::-1], sorted(times), [*times[::2], *times[1::2]]):
        for t in order:
            assert torch.equal(walk.at(t), alone[t])
    assert len({tuple(w.flatten().tolist()) for w in alone.values()}) == len(alone)


def test_a_row_of_the_path_depends_on_its_index_alone():
    at = torch.tensor([0.3, 0.77], dtype=torch.float64)
    whole = Brownian(0, 130, (2, 3), 4)(*at)
    for start, stop in ((0, 1), (3, 10), (60, 130), (64, 128)):
        assert torch.equal(Brownian(start, stop, (2, 3), 4)(*at), whole[start:stop])
    assert Brownian(0, 130, (2, 3), 5)(*at).ne(whole).all()
    assert len(whole.flatten().unique()) == whole.numel()


@pytest.mark.parametrize("steps", [16, 28, 100, 1000])
def test_steps_cost_few_draws_and_little_memory(steps, monkeypatch):
    walk, drawn = Brownian(0, 1, (1,), 0), []
    draw = walk._draw
    monkeypatch.setattr(walk, "_draw", lambda node: drawn.append(node) or draw(node))
    moved(walk, *torch.linspace(0, 1, steps + 1).double().tolist())
    assert len(drawn) <= steps * (walk.DEPTH + 2 - int(math.log2(steps)))
    assert steps != 16 or sorted(drawn) == list(range(1, 16))  # no draw twice, none too many
    assert len(walk.around) <= walk.DEPTH + 1


@pytest.mark.parametrize("t", [-0.1, 1.1, float("nan")])
def test_a_time_outside_the_path_is_refused(t):
    with pytest.raises(ValueError, match="not in"):
        Brownian(0, 1, (1,), 0).at(t)
