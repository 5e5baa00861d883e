"""When the supervisor of scripts/run ends, and when it starts again what ended. tests/live/test_scripts.py runs it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise

import pytest

from scripts import supervise
from vault.settings.config import ROOT

_WAITING = """
import signal, sys
from scripts import supervise
signal.signal(signal.SIGHUP, getattr(signal, sys.argv[1]))
signal.signal(signal.SIGINT, signal.SIG_DFL)
supervise._hear_signals()
try:
    print("waiting", flush=True)
    supervise._wait(float(sys.argv[2]))
except supervise.Stopped:
    sys.exit(3)
"""


@pytest.fixture
def lock() -> Iterator[int]:
    descriptor = os.open(os.devnull, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def waiting(on_hang_up: str, seconds: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", _WAITING, on_hang_up, seconds]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"waiting\n"
    return process


@pytest.mark.parametrize(("on_hang_up", "seconds", "status"), [("SIG_DFL", "100", 3), ("SIG_IGN", "0.2", 0)])
def test_the_supervisor_outlives_its_reader_under_nohup_only(on_hang_up: str, seconds: str, status: int) -> None:
    process = waiting(on_hang_up, seconds)
    assert process.stdout is not None

    process.stdout.close()

    assert process.wait(timeout=60) == status


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_the_supervisor_ends_at_each_signal(number: signal.Signals) -> None:
    process = waiting("SIG_DFL", "100")

    process.send_signal(number)

    assert process.wait(timeout=60) == 3
    assert process.stdout is not None
    process.stdout.close()


def test_a_process_that_keeps_ending_is_started_later_each_time(lock: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(supervise.time, "monotonic", lambda: now)
    child = supervise.Child("failure", ["/bin/false"], lock)
    child.start()
    starts = [now]

    while len(starts) < 8:
        if child.popen is not None:
            os.waitid(os.P_PID, child.popen.pid, os.WEXITED | os.WNOWAIT)
        now += 0.5
        was_running = child.popen is not None
        child.watch()
        if child.popen is not None and not was_running:
            starts.append(now)
    child.kill()

    assert [round(later - before) for before, later in pairwise(starts)] == [2, 2, 4, 8, 16, 30, 30]
