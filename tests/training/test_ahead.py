"""Work done ahead in threads: what is computed when, exceptions, and no thread left."""

import threading
import time

import pytest

from fmdiff.machine.ahead import Ahead


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("fmdiff-ahead")]


@pytest.fixture
def ahead():
    """Ahead of a compute that is told to the test; whatever happens, its threads end."""
    made = []

    def make(compute, **keys):
        made.append(Ahead(compute, **keys))
        return made[-1]

    before = threads()
    yield make
    for each in made:
        each.close()
    assert threads() == before


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize(("depth", "workers"), [(0, 1), (1, 1), (4, 1), (4, 3)])
def test_each_step_is_computed_once_and_given_at_its_step(ahead, depth, workers):
    asked, lock = [], threading.Lock()

    def square(k):
        with lock:
            asked.append(k)
        return k * k

    squares = ahead(square, depth=depth, workers=workers)
    assert [squares(k) for k in range(20)] == [k * k for k in range(20)]
    squares.close()
    assert sorted(asked) == list(range(len(asked))) and 20 <= len(asked) <= 20 + depth


def test_the_next_steps_are_begun_in_order_before_they_are_asked_for(ahead):
    asked = []
    squares = ahead(lambda k: asked.append(k) or k * k, depth=3)
    assert squares(5) == 25
    until(lambda: len(asked) == 4)
    assert sorted(asked) == [5, 6, 7, 8]
    assert [k for k in asked if k > 5] == [6, 7, 8]
    squares(6)
    until(lambda: len(asked) == 5)
    assert asked[-1] == 9


def test_a_jump_is_computed_at_once_and_drops_what_was_under_way(ahead):
    asked, go = [], threading.Event()

    def slow(k):
        asked.append(k)
        if k == 1:
            assert go.wait(20)
        return -k

    found = ahead(slow, depth=3)
    assert found(0) == 0
    until(lambda: 1 in asked)
    assert found(100) == -100  # though the only thread is still at step 1
    go.set()
    assert [found(k) for k in (101, 102, 7)] == [-101, -102, -7]
    found.close()
    assert not {2, 3} & set(asked)


def test_the_caller_does_not_wait_for_a_step_no_thread_has_begun(ahead):
    go = threading.Event()
    found = ahead(lambda k: k != 1 or go.wait(20), depth=3)
    assert found(0)
    assert found(2) and not go.is_set()
    go.set()


def test_an_exception_is_that_of_its_step(ahead):
    def odd(k):
        if k % 3 == 2:
            raise ValueError(f"step {k}")
        return k

    found = ahead(odd, depth=4)
    for k in range(9):
        if k % 3 == 2:
            with pytest.raises(ValueError, match=f"step {k}"):
                found(k)
        else:
            assert found(k) == k


def test_close_ends_the_threads_and_what_waits(ahead):
    before, asked = threads(), []

    def slow(k):
        asked.append(k)
        time.sleep(0.02)
        return k

    found = ahead(slow, depth=50, workers=2)
    assert threads() == before  # none before there is work
    found(0)
    assert len(threads()) == len(before) + 2
    found.close()
    assert threads() == before and len(asked) < 40
    found.close()
    assert found(3) == 3  # it may begin again
    found.close()
    assert threads() == before
