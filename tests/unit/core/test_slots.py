"""How many threads may wait for one thing, and for how long."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from testing.servers import wait_until
from vault.core.errors import Busy, StorageUnavailable
from vault.core.slots import KEY_WAITS, Slots, ThreadPlan, Turns


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_slots_are_taken_up_to_their_number_and_by_one_holder_up_to_its_share() -> None:
    slots = Slots(3, share=2)

    taken = [slots.take(holder) for holder in ("anna", "anna", "anna", "ben", "clara")]

    assert taken == [True, True, False, True, False]
    slots.give_back("anna")
    assert slots.take("clara")


def test_a_slot_that_is_given_back_goes_to_a_thread_that_waits_and_may_have_it(threads: ThreadPoolExecutor) -> None:
    slots = Slots(2, share=1, waiting=2, patience_seconds=20)
    slots.take("anna")
    slots.take("ben")

    again, first = threads.submit(slots.take, "anna"), threads.submit(slots.take, "clara")
    wait_until(lambda: slots.waiting == 2)
    refused = slots.take("dora")
    slots.give_back("ben")

    assert not refused
    assert first.result(timeout=20)
    assert not again.done()
    slots.give_back("anna")
    assert again.result(timeout=20)


def test_a_slot_is_waited_for_a_while_only() -> None:
    slots = Slots(1, share=1, waiting=1, patience_seconds=0.01)
    slots.take("anna")

    assert not slots.take("ben")


def test_a_turn_that_ends_goes_to_a_thread_that_waits(threads: ThreadPoolExecutor) -> None:
    turns = Turns(1, patience_seconds=20, hangs_after_seconds=20)
    first = turns.begin()

    second = threads.submit(turns.begin)
    wait_until(lambda: turns.waiting == 1)
    assert first is not None
    turns.end(first)

    assert second.result(timeout=20) is not None


def test_a_turn_is_waited_for_a_while_only() -> None:
    turns = Turns(1, patience_seconds=0.01, hangs_after_seconds=20)
    turns.begin()

    assert turns.begin() is None


def test_once_a_turn_lasts_too_long_no_thread_waits() -> None:
    now = [0.0]
    turns = Turns(1, patience_seconds=20, hangs_after_seconds=0.5, clock=lambda: now[0])
    turns.begin()
    now[0] = 0.6

    assert turns.begin() is None


def test_threads_that_wait_leave_when_a_turn_has_lasted_too_long(threads: ThreadPoolExecutor) -> None:
    turns = Turns(1, patience_seconds=20, hangs_after_seconds=0.05)
    turns.begin()

    waited = [threads.submit(turns.begin) for _ in range(4)]

    assert [future.result(timeout=10) for future in waited] == [None] * 4


def test_a_block_without_a_turn_is_refused_and_one_with_a_turn_ends_it_whatever_it_raises() -> None:
    turns = Turns(1, patience_seconds=0)

    with pytest.raises(ZeroDivisionError), turns.taken():
        raise ZeroDivisionError
    with turns.taken(), pytest.raises(Busy), turns.taken():
        pass
    with turns.taken(), pytest.raises(StorageUnavailable), turns.taken(refusal=StorageUnavailable):
        pass


@pytest.mark.parametrize("workers", [4, 8, 32, 100])
def test_a_quarter_of_the_workers_is_free_whatever_hangs(workers: int) -> None:
    plan, hashes = ThreadPlan(workers), 2

    waiting = plan.transfer_waits + plan.small_files + plan.keys + KEY_WAITS + 2 * plan.password_waits + plan.answers

    assert plan.total(hashes) - waiting - hashes - 1 - plan.transfers == plan.quarter >= 1
    assert 1 <= plan.transfers_of_one_account <= max(1, plan.transfers / 4)
