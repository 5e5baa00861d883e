import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testing.servers import wait_until
from vault.core.errors import Busy
from vault.storage.buffers import BufferBudget

BOUND_SECONDS = 60.0
MIB = 1024 * 1024


class WaitClock:
    """A clock that stands still until it is set, and tells when another thread has begun to wait."""

    def __init__(self) -> None:
        self.now = 0.0
        self.is_waited_for = threading.Event()
        self.waiting: set[int] = set()
        self._maker = threading.get_ident()
        self._asked_by: list[int] = []

    def __call__(self) -> float:
        # allocate asks once for its deadline and again, with the lock held, each time before it waits.
        thread = threading.get_ident()
        if thread != self._maker and thread in self._asked_by:
            self.waiting.add(thread)
            self.is_waited_for.set()
        self._asked_by.append(thread)
        return self.now


def test_no_room_is_busy_only_once_the_wait_is_over() -> None:
    # The deadline is 1030; at 1029.999 it waits once more, at 1030 it gives up.
    moments = iter([0.0, 1000.0, 1029.999, 1030.0])
    budget = BufferBudget(100, wait_seconds=30, clock=lambda: next(moments))
    budget.allocate(100)

    with pytest.raises(Busy):
        budget.allocate(1)

    assert list(moments) == []


def test_a_caller_waits_on_while_the_room_is_too_small() -> None:
    clock = WaitClock()
    budget = BufferBudget(100, wait_seconds=BOUND_SECONDS, clock=clock)
    small, large = budget.allocate(10), budget.allocate(90)

    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(budget.allocate, 50)
        assert clock.is_waited_for.wait(BOUND_SECONDS)
        clock.is_waited_for.clear()
        budget.free(small)
        assert clock.is_waited_for.wait(BOUND_SECONDS)
        assert not waiting.done()
        budget.free(large)

        assert len(waiting.result(BOUND_SECONDS)) == 50


def test_a_wait_that_was_in_vain_ends_busy_although_something_was_freed() -> None:
    clock = WaitClock()
    budget = BufferBudget(100, wait_seconds=BOUND_SECONDS, clock=clock)
    small, _ = budget.allocate(10), budget.allocate(90)

    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(budget.allocate, 50)
        assert clock.is_waited_for.wait(BOUND_SECONDS)
        clock.now = BOUND_SECONDS
        budget.free(small)

        with pytest.raises(Busy):
            waiting.result(BOUND_SECONDS)

    assert budget.bytes_out == 90


def test_all_callers_that_wait_are_woken() -> None:
    clock = WaitClock()
    # Longer than the test has patience: it must be the notice that wakes them, not the end of their wait.
    budget = BufferBudget(100, wait_seconds=2 * BOUND_SECONDS, clock=clock)
    held = budget.allocate(100)

    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(budget.allocate, 25) for _ in range(4)]
        wait_until(lambda: len(clock.waiting) == 4, what="four threads waiting")
        budget.free(held)

        assert sum(len(one.result(BOUND_SECONDS)) for one in waiting) == 100


def test_a_freed_buffer_is_given_out_again_and_one_in_use_is_not() -> None:
    budget = BufferBudget(100)
    first, second = budget.allocate(40), budget.allocate(40)
    assert first is not second
    budget.free(first)
    budget.free(second)

    again = [budget.allocate(40), budget.allocate(40)]

    assert {id(buffer) for buffer in again} == {id(first), id(second)}


def test_kept_buffers_of_another_size_make_way() -> None:
    budget = BufferBudget(100)
    kept = budget.allocate(90)
    budget.free(kept)

    budget.free(budget.allocate(50))

    # Had it been kept beside the new one, 140 bytes would lie in a budget of 100.
    assert budget.allocate(90) is not kept


def test_a_buffer_larger_than_the_budget_is_not_kept() -> None:
    budget = BufferBudget(100)
    huge = budget.allocate(1000)
    budget.free(huge)

    assert budget.allocate(1000) is not huge


def test_of_many_freed_buffers_only_some_are_kept() -> None:
    budget = BufferBudget(1024 * MIB)
    freed = [budget.allocate(8 * MIB) for _ in range(6)]
    for buffer in freed:
        budget.free(buffer)

    again = [budget.allocate(8 * MIB) for _ in range(6)]

    assert [buffer for buffer in freed if any(buffer is one for one in again)] == freed[2:]


def test_memory_that_is_not_kept_goes_back_to_the_kernel() -> None:
    budget = BufferBudget(1024 * MIB)
    before = resident_bytes()
    buffers = [budget.allocate(8 * MIB) for _ in range(32)]
    for buffer in buffers:
        buffer[:] = bytes(8 * MIB)
    assert resident_bytes() - before > 240 * MIB

    for buffer in buffers:
        budget.free(buffer)

    # Although there are views of them all.
    assert resident_bytes() - before < 64 * MIB


def test_a_buffer_for_which_there_is_no_memory_is_busy_and_not_out() -> None:
    budget = BufferBudget(2**62, wait_seconds=0)

    with pytest.raises(Busy):
        budget.allocate(2**62)

    assert budget.bytes_out == 0
    assert len(budget.allocate(40)) == 40


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(1, 150), st.none()), max_size=40))
def test_never_more_is_out_than_the_budget_but_for_a_single_larger_one(steps: list[int | None]) -> None:
    budget = BufferBudget(100, wait_seconds=0)
    out: list[memoryview] = []

    for size in steps:
        if size is None:
            if out:
                budget.free(out.pop(0))
            continue
        fits = not out or sum(map(len, out)) + size <= 100
        try:
            out.append(budget.allocate(size))
            assert fits
            assert len(out[-1]) == size
        except Busy:
            assert not fits

        assert budget.bytes_out == sum(map(len, out))
        assert budget.bytes_out <= 100 or len(out) == 1
        assert len({id(buffer) for buffer in out}) == len(out)
