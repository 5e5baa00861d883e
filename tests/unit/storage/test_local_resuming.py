"""Unfinished objects in a directory: locks, copies, disks that fail, and what survives a power cut."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from testing.disks import fill, on_small_disks, small_disk
from testing.failing_disks import failing, failing_for_folders, failing_with, recorded_steps
from testing.stores import PART, new_key, store_part
from vault.core.errors import (
    Busy,
    ObjectNotFound,
    PartsLost,
    StorageError,
    StorageFull,
    StorageUnavailable,
)
from vault.storage import INSTALLATION_KEY, ResumableWriter, StoredPart
from vault.storage.buffers import BufferBudget
from vault.storage.local import LocalStore

ROOT = Path(__file__).parents[3]
# Locks, waits for a line, and writes the second part.
WRITER = """
import sys
from pathlib import Path
from vault.storage.buffers import BufferBudget
from vault.storage.local import LocalStore
root, key, handle, size = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
writer = LocalStore(root, BufferBudget(size)).resume(key, handle, part_size=size)
buffer = writer.allocate(size)
print("locked", flush=True)
sys.stdin.readline()
buffer[:] = b"x" * size
writer.write(2, buffer)()
print("written", flush=True)
"""
KEY = new_key()
NAME = KEY.rpartition("/")[2]
FIRST, SECOND, LAST = b"1" * PART, b"2" * PART, b"the last part"
WITHOUT_LOCKS = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS]
FAILURES = [
    pytest.param(errno.ENOSPC, StorageFull, id="ENOSPC"),
    pytest.param(errno.EDQUOT, StorageFull, id="EDQUOT"),
    pytest.param(errno.EIO, StorageUnavailable, id="EIO"),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "var" / "store"


@pytest.fixture
def budget() -> BufferBudget:
    return BufferBudget(8 * PART, wait_seconds=0)


@pytest.fixture
def store(root: Path, budget: BufferBudget) -> LocalStore:
    return LocalStore(root, budget)


def resume(store: LocalStore, handle: str | None) -> ResumableWriter:
    return store.resume(KEY, handle, part_size=PART)


def handle_of(writer: ResumableWriter) -> str:
    assert writer.handle is not None
    return writer.handle


def begun(store: LocalStore) -> tuple[str, StoredPart]:
    """Store the first part; return the handle and the part."""
    with closing(resume(store, None)) as writer:
        part = store_part(writer, 1, FIRST)
        return handle_of(writer), part


def growing(root: Path) -> dict[str, bytes]:
    """What is in the folder of unfinished objects."""
    return {path.name: path.read_bytes() for path in (root / "incoming").iterdir()}


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


class TestTakingOver:
    """Another process still has the file open, stopped or slow: it may wake and write."""

    def test_a_second_writer_goes_on_in_a_copy_and_a_late_write_of_the_first_reaches_nothing(
        self, store: LocalStore
    ) -> None:
        handle, one = begun(store)
        with closing(resume(store, handle)) as stopped, closing(resume(store, handle)) as successor:
            late = stopped.allocate(PART)
            late[:] = b"x" * PART
            two, three = store_part(successor, 2, SECOND), store_part(successor, 3, LAST)

            stopped.write(1, late)()
            copy = handle_of(successor)
            store.complete(KEY, copy, [one, two, three])
            stopped.write(2, late)()

        assert copy != handle
        assert stopped.handle == handle
        assert store.get(KEY) == FIRST + SECOND + LAST

    def test_a_writer_that_has_not_locked_yet_goes_on_in_a_copy_of_its_successors_file(
        self, store: LocalStore, root: Path
    ) -> None:
        handle, _ = begun(store)
        with closing(resume(store, handle)) as stopped, closing(resume(store, handle)) as successor:
            store_part(successor, 2, SECOND)
            store_part(stopped, 2, b"x" * PART)

            assert successor.handle == handle
            assert stopped.handle != handle
            assert growing(root)[handle] == FIRST + SECOND

    def test_the_lock_is_taken_before_the_first_write(self, store: LocalStore) -> None:
        """A caller looks whether it may write between `allocate` and `write`; a successor must see it by then."""
        handle, _ = begun(store)
        with closing(resume(store, handle)) as looking, closing(resume(store, handle)) as successor:
            looking.allocate(PART)

            store_part(successor, 2, SECOND)

        assert successor.handle != handle

    def test_a_closed_writer_is_followed_in_the_same_file(self, store: LocalStore, root: Path) -> None:
        handle, _ = begun(store)

        with closing(resume(store, handle)) as successor:
            store_part(successor, 2, SECOND)

        assert successor.handle == handle
        assert growing(root) == {handle: FIRST + SECOND}

    def test_the_copied_file_stays_until_the_caller_can_have_kept_the_copys_handle(self, store: LocalStore) -> None:
        """The successor dies before its row has the new handle, so that the next one comes with the old one."""
        handle, one = begun(store)
        with closing(resume(store, handle)) as stopped:
            stopped.allocate(PART)
            with closing(resume(store, handle)) as successor:
                store_part(successor, 2, SECOND)

        with closing(resume(store, handle)) as third:
            two = store_part(third, 2, SECOND)
            unfinished = store.unfinished()
            store.complete(KEY, handle_of(third), [one, two])

        assert third.handle == handle
        assert unfinished == 2
        assert store.get(KEY) == FIRST + SECOND
        store.delete_pieces(KEY)
        assert store.unfinished() == 0
        assert store.get(KEY) == FIRST + SECOND

    def test_delete_removes_file_and_copy(self, store: LocalStore, root: Path) -> None:
        handle, _ = begun(store)
        with closing(resume(store, handle)) as stopped, closing(resume(store, handle)) as successor:
            stopped.allocate(PART)
            store_part(successor, 2, SECOND)

            store.delete(KEY)

        assert growing(root) == {}

    @pytest.mark.parametrize(("number", "error"), FAILURES)
    def test_a_copy_that_fails_leaves_nothing_and_may_be_tried_again(
        self, store: LocalStore, root: Path, number: int, error: type[StorageError]
    ) -> None:
        handle, _ = begun(store)
        with closing(resume(store, handle)) as stopped, closing(resume(store, handle)) as successor:
            stopped.allocate(PART)
            buffer = successor.allocate(PART)
            buffer[:] = SECOND
            before = descriptors()

            with failing_with(error, root, fdatasync=failing(number)):
                successor.write(2, buffer)

            assert descriptors() == before
            assert (successor.handle, growing(root)) == (handle, {handle: FIRST})
            successor.write(2, buffer)()
            assert growing(root)[handle_of(successor)] == FIRST + SECOND

    def test_a_copy_needs_room_for_all_that_was_written(
        self, store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        handle, _ = begun(store)
        asked: list[int] = []
        monkeypatch.setattr("vault.storage.local_writing.require_room", lambda _, wanted: asked.append(wanted))
        with closing(resume(store, handle)) as stopped, closing(resume(store, handle)) as successor:
            stopped.allocate(PART)
            store_part(successor, 2, LAST)

        assert asked == [PART, len(LAST)]


class TestProcesses:
    @pytest.fixture
    def begun_elsewhere(self, store: LocalStore, root: Path) -> Iterator[tuple[str, StoredPart, subprocess.Popen[str]]]:
        """An object whose first part is stored, and a process that is about to write its second."""
        handle, one = begun(store)
        command = [sys.executable, "-c", WRITER, str(root), KEY, handle, str(PART)]
        with subprocess.Popen(command, cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "locked\n"
            yield handle, one, process
            process.kill()

    def test_a_process_that_was_stopped_and_wakes_writes_nothing_into_the_object(
        self, store: LocalStore, root: Path, begun_elsewhere: tuple[str, StoredPart, subprocess.Popen[str]]
    ) -> None:
        handle, one, process = begun_elsewhere
        process.send_signal(signal.SIGSTOP)
        with closing(resume(store, handle)) as successor:
            two = store_part(successor, 2, SECOND)
            copy = handle_of(successor)
        store.complete(KEY, copy, [one, two])

        process.send_signal(signal.SIGCONT)
        told, _ = process.communicate("write\n", timeout=60)

        assert told == "written\n"
        assert growing(root) == {handle: FIRST + b"x" * PART}
        assert store.get(KEY) == FIRST + SECOND

    def test_a_killed_process_leaves_no_lock(
        self, store: LocalStore, begun_elsewhere: tuple[str, StoredPart, subprocess.Popen[str]]
    ) -> None:
        handle, one, process = begun_elsewhere
        process.kill()
        process.wait(60)

        with closing(resume(store, handle)) as successor:
            two = store_part(successor, 2, SECOND)

        assert successor.handle == handle
        store.complete(KEY, handle, [one, two])
        assert store.get(KEY) == FIRST + SECOND


class TestWithoutLocks:
    """Some network file systems have no flock: a process that wakes there could not be kept from writing."""

    @pytest.fixture(params=WITHOUT_LOCKS, ids=errno.errorcode.get)
    def without_locks(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
        number: int = request.param
        monkeypatch.setattr(fcntl, "flock", failing(number))
        return number

    def test_an_object_is_not_begun_and_leaves_nothing(
        self, store: LocalStore, root: Path, budget: BufferBudget, without_locks: int
    ) -> None:
        with closing(resume(store, None)) as writer:
            buffer = writer.allocate(PART)
            before = descriptors()
            for _ in range(2):
                with failing_with(StorageUnavailable, root) as caught:
                    writer.write(1, buffer)

            assert caught.value.reason == errno.errorcode[without_locks]
            assert descriptors() == before
            assert writer.handle is None
        assert growing(root) == {}
        assert budget.bytes_out == 0

    def test_an_object_is_not_gone_on_with_and_stays(
        self, store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        handle, _ = begun(store)
        with closing(resume(store, handle)) as writer:
            before = descriptors()
            with monkeypatch.context() as patch:
                patch.setattr(fcntl, "flock", failing(errno.ENOLCK))
                for _ in range(2):
                    with failing_with(StorageUnavailable, root):
                        writer.allocate(PART)
                    with failing_with(StorageUnavailable, root):
                        writer.write(2, memoryview(SECOND))
            assert descriptors() == before

            store_part(writer, 2, SECOND)

        assert growing(root) == {handle: FIRST + SECOND}

    @pytest.mark.usefixtures("without_locks")
    def test_plain_uploads_need_no_lock(self, store: LocalStore) -> None:
        writer = store.writer(KEY, part_size=PART)
        buffer = writer.buffer()
        buffer[: len(LAST)] = LAST
        writer.write(buffer, len(LAST))
        writer.commit()

        assert store.get(KEY) == LAST


class TestDurability:
    @pytest.fixture
    def steps(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        return recorded_steps(root, monkeypatch)

    def test_a_first_part_is_flushed_with_the_name_of_its_file(
        self, store: LocalStore, root: Path, steps: list[str]
    ) -> None:
        begun(store)
        steps.clear()

        begun(store)

        assert steps == ["flush incoming", f"flush {NAME}"]

    def test_a_later_part_is_flushed_before_it_is_told(self, store: LocalStore, root: Path, steps: list[str]) -> None:
        handle, _ = begun(store)
        with closing(resume(store, handle)) as writer:
            steps.clear()

            store_part(writer, 2, SECOND)

            assert steps == [f"flush {NAME}"]

    def test_a_copy_is_flushed_with_its_name_before_more_is_written(self, store: LocalStore, steps: list[str]) -> None:
        handle, _ = begun(store)
        with closing(resume(store, handle)) as stopped, closing(resume(store, handle)) as successor:
            stopped.allocate(PART)
            steps.clear()

            store_part(successor, 2, SECOND)

            assert steps == [f"flush {NAME}", "flush incoming", f"flush {NAME}"]

    def test_an_object_is_flushed_then_named_then_its_name_is_flushed(
        self, store: LocalStore, steps: list[str]
    ) -> None:
        handle, part = begun(store)
        steps.clear()

        store.complete(KEY, handle, [part])

        assert steps == [f"flush {NAME}", f"rename {NAME}", f"flush {NAME[:2]}"]

    def test_a_completion_by_another_process_is_durable_before_the_call_returns(
        self, store: LocalStore, steps: list[str]
    ) -> None:
        handle, part = begun(store)
        store.complete(KEY, handle, [part])
        steps.clear()

        store.complete(KEY, handle, [part])

        assert steps == [f"flush {NAME[:2]}"]

    def test_a_piece_is_flushed_before_its_name(self, store: LocalStore, steps: list[str]) -> None:
        store.put_piece(KEY, "0-1", b"content")
        steps.clear()

        store.put_piece(KEY, "1-1", b"content")

        assert steps == [f"flush {NAME}", "flush incoming"]

    def test_permissions_are_the_owners_alone(self, store: LocalStore, root: Path) -> None:
        before = os.umask(0)
        try:
            begun(store)
            store.put_piece(KEY, "0-1", b"content")
        finally:
            os.umask(before)

        assert {path.stat().st_mode & 0o777 for path in (root / "incoming").iterdir()} == {0o600}


class TestCompleting:
    def test_what_lies_beyond_the_last_part_is_cut_off(self, store: LocalStore) -> None:
        """A part that no row has, and the garbage of a write that broke off."""
        handle, one = begun(store)
        with closing(resume(store, handle)) as writer:
            store_part(writer, 2, SECOND)

        store.complete(KEY, handle, [one])

        assert store.get(KEY) == FIRST

    def test_a_file_of_the_right_size_is_not_changed(self, store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """A truncation to the same size by a second process would change the time, and with it the ETag of readers."""
        handle, one = begun(store)
        monkeypatch.setattr(os, "ftruncate", failing(errno.EIO))

        store.complete(KEY, handle, [one])

        assert store.get(KEY) == FIRST

    def test_a_file_that_is_too_short_is_lost_and_stays(self, store: LocalStore, root: Path) -> None:
        handle, one = begun(store)
        os.truncate(root / "incoming" / handle, PART - 1)

        with failing_with(PartsLost, root):
            store.complete(KEY, handle, [one])

        assert not store.path(KEY).exists()
        assert store.unfinished() == 1

    def test_a_file_that_another_process_renames_meanwhile_is_complete(
        self, store: LocalStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        handle, one = begun(store)
        rename = os.rename

        def rename_second(source: Path, target: Path) -> None:
            rename(source, target)
            rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", rename_second)
            store.complete(KEY, handle, [one])

        assert store.get(KEY) == FIRST

    def test_a_file_that_is_deleted_meanwhile_is_lost(
        self, store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        handle, one = begun(store)

        def rename_deleted(source: Path, target: Path) -> None:
            store.delete(KEY)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/a/secret/path")

        with failing_with(PartsLost, root, rename=rename_deleted):
            store.complete(KEY, handle, [one])

    @pytest.mark.parametrize(("number", "error"), FAILURES)
    @pytest.mark.parametrize("call", ["fsync", "rename", "ftruncate"])
    def test_a_failure_is_told_and_completing_may_be_repeated(
        self, store: LocalStore, root: Path, call: str, number: int, error: type[StorageError]
    ) -> None:
        handle, one = begun(store)
        with (root / "incoming" / handle).open("ab") as file:
            file.write(b"garbage")
        before = descriptors()

        with failing_with(error, root, **{call: failing(number)}):
            store.complete(KEY, handle, [one])

        assert descriptors() == before
        store.complete(KEY, handle, [one])
        assert store.get(KEY) == FIRST

    def test_a_name_that_cannot_be_flushed_is_an_error_until_it_can(self, store: LocalStore, root: Path) -> None:
        handle, one = begun(store)

        for _ in range(2):
            with failing_with(StorageUnavailable, root, fsync=failing_for_folders(errno.EIO)):
                store.complete(KEY, handle, [one])

        store.complete(KEY, handle, [one])
        assert store.get(KEY) == FIRST


class TestHandles:
    @pytest.mark.parametrize(
        "handle",
        [
            pytest.param(f"{new_key().rpartition('/')[2]}.0123456789abcdef", id="of-another-object"),
            pytest.param(f"{NAME}.0-1", id="a-piece"),
            pytest.param(f"{NAME}.0123456789abcde", id="short"),
            pytest.param(f"{NAME}.0123456789abcdef/../x", id="dots"),
            pytest.param(f"{NAME}.0123456789abcdef\n", id="newline"),
            pytest.param(f"../{NAME}.0123456789abcdef", id="folder"),
            "",
            "vault-id",
        ],
    )
    def test_a_handle_that_is_not_the_objects_is_refused(self, store: LocalStore, root: Path, handle: str) -> None:
        with pytest.raises(ValueError, match=r"^not a handle of this object$"):
            resume(store, handle)
        with pytest.raises(ValueError, match=r"^not a handle of this object$"):
            store.complete(KEY, handle, [])

        assert not root.exists()

    def test_a_key_of_another_form_is_refused(self, store: LocalStore, root: Path) -> None:
        uses: list[Callable[[], object]] = [
            lambda: store.resume("incoming/x", None, part_size=PART).write(1, memoryview(FIRST)),
            lambda: store.complete("incoming/x", "x", []),
            lambda: store.put_piece("incoming/x", "0-1", b""),
            lambda: store.get_piece("incoming/x", "0-1"),
            lambda: store.delete_pieces("incoming/x"),
        ]

        for use in uses:
            with pytest.raises(ValueError, match=r"^not an object key$"):
                use()

        assert not root.exists()

    def test_an_unknown_handle_is_lost(self, store: LocalStore, root: Path) -> None:
        begun(store)
        gone = f"{NAME}.0123456789abcdef"

        with closing(resume(store, gone)) as writer:
            with failing_with(PartsLost, root):
                writer.allocate(PART)
            with failing_with(PartsLost, root):
                writer.write(2, memoryview(SECOND))
        with failing_with(PartsLost, root):
            store.complete(KEY, gone, [])


class TestFailures:
    @pytest.mark.parametrize(("number", "error"), FAILURES)
    @pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
    def test_a_part_that_fails_may_be_written_again(
        self, store: LocalStore, root: Path, budget: BufferBudget, call: str, number: int, error: type[StorageError]
    ) -> None:
        handle, one = begun(store)
        with closing(resume(store, handle)) as writer:
            buffer = writer.allocate(PART)
            buffer[:] = SECOND
            with failing_with(error, root, **{call: failing(number)}):
                writer.write(2, buffer)

            two = writer.write(2, buffer)()

        store.complete(KEY, handle, [one, two])
        assert store.get(KEY) == FIRST + SECOND
        assert budget.bytes_out == 0

    @pytest.mark.parametrize(("number", "error"), FAILURES)
    @pytest.mark.parametrize("call", ["open", "fsync"])
    def test_an_object_that_cannot_begin_leaves_nothing(
        self, store: LocalStore, root: Path, call: str, number: int, error: type[StorageError]
    ) -> None:
        begun(store)
        store.delete(KEY)
        with closing(resume(store, None)) as writer:
            buffer = writer.allocate(PART)
            before = descriptors()

            with failing_with(error, root, **{call: failing(number)}):
                writer.write(1, buffer)

            assert descriptors() == before
            assert writer.handle is None
        assert growing(root) == {}

    def test_a_write_that_takes_only_a_piece_is_carried_on(
        self, store: LocalStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pwrite = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, bytes(data)[:1000], at))

        handle, one = begun(store)
        store.put_piece(KEY, "0-1", SECOND)
        store.complete(KEY, handle, [one])

        assert store.get(KEY) == FIRST
        assert store.get_piece(KEY, "0-1") == SECOND

    def test_an_error_of_close_changes_nothing(self, store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
        handle, _ = begun(store)
        writer = resume(store, handle)
        writer.allocate(PART)
        close = os.close

        def close_and_fail(fd: int) -> None:
            close(fd)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr(os, "close", close_and_fail)
            writer.close()

        with closing(resume(store, handle)) as successor:
            store_part(successor, 2, SECOND)
        assert successor.handle == handle

    def test_no_room_in_memory_is_busy_and_close_gives_everything_back(self, budget: BufferBudget, root: Path) -> None:
        with closing(resume(LocalStore(root, budget), None)) as writer:
            writer.allocate(8 * PART)
            with pytest.raises(Busy):
                writer.allocate(1)

        assert budget.bytes_out == 0

    @pytest.mark.parametrize(("number", "error"), FAILURES)
    @pytest.mark.parametrize("call", ["open", "pwrite", "fsync"])
    def test_a_piece_that_cannot_be_stored_leaves_nothing(
        self, store: LocalStore, root: Path, call: str, number: int, error: type[StorageError]
    ) -> None:
        store.put_piece(KEY, "0-1", b"content")
        before = descriptors()

        with failing_with(error, root, **{call: failing(number)}):
            store.put_piece(KEY, "1-1", b"content")

        assert descriptors() == before
        assert list(growing(root)) == [f"{NAME}.0-1"]

    @pytest.mark.parametrize("number", [errno.EACCES, errno.EIO], ids=errno.errorcode.get)
    def test_pieces_that_cannot_be_read_or_removed_are_not_missing(
        self, store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        store.put_piece(KEY, "0-1", b"content")
        monkeypatch.setattr(Path, "read_bytes", failing(number))

        with failing_with(StorageUnavailable, root):
            store.get_piece(KEY, "0-1")
        for names in (["0-1"], None):
            with failing_with(StorageUnavailable, root, unlink=failing(number)):
                store.delete_pieces(KEY, names)


class TestUnmounted:
    """The disk goes after the id was confirmed, and comes back."""

    @pytest.fixture
    def unmounted(self, store: LocalStore, root: Path) -> tuple[str, StoredPart]:
        store.put_if_absent(INSTALLATION_KEY, b"an id")
        store.get(INSTALLATION_KEY)
        written = begun(store)
        store.put_piece(KEY, "0-1", b"content")
        root.rename(root.with_name("elsewhere"))
        root.mkdir()
        return written

    def test_parts_and_pieces_are_unavailable_and_not_lost(
        self, store: LocalStore, root: Path, unmounted: tuple[str, StoredPart]
    ) -> None:
        handle, one = unmounted
        uses: list[Callable[[], Any]] = [
            lambda: resume(store, handle).allocate(PART),
            lambda: resume(store, handle).write(2, memoryview(SECOND)),
            lambda: resume(store, None).write(1, memoryview(FIRST)),
            lambda: store.complete(KEY, handle, [one]),
            lambda: store.get_piece(KEY, "0-1"),
            lambda: store.put_piece(KEY, "1-1", b"content"),
        ]

        for use in uses:
            with failing_with(StorageUnavailable, root) as caught:
                use()
            assert caught.value.reason == "no_id"

        assert list(root.iterdir()) == []
        root.rmdir()
        root.with_name("elsewhere").rename(root)
        assert store.get_piece(KEY, "0-1") == b"content"
        store.complete(KEY, handle, [one])
        assert store.get(KEY) == FIRST


def test_a_store_without_its_folder_has_no_pieces_and_makes_none(store: LocalStore, root: Path) -> None:
    store.delete_pieces(KEY)
    store.delete_pieces(KEY, ["0-1"])
    with pytest.raises(ObjectNotFound):
        store.get_piece(KEY, "0-1")

    assert not root.exists()


@on_small_disks
def test_a_disk_that_is_really_full_is_full_and_usable_again(tmp_path: Path, budget: BufferBudget) -> None:
    with small_disk(tmp_path / "disk", 256 * 1024):
        store = LocalStore(tmp_path / "disk" / "store", budget)
        handle, one = begun(store)
        ballast = fill(tmp_path / "disk")

        with closing(resume(store, handle)) as writer:
            with failing_with(StorageFull, tmp_path):
                store_part(writer, 2, SECOND)
            with failing_with(StorageFull, tmp_path):
                store.put_piece(KEY, "0-1", SECOND)
            with closing(resume(store, handle)) as successor, failing_with(StorageFull, tmp_path):
                store_part(successor, 2, SECOND)
            left = growing(tmp_path / "disk" / "store")
            ballast.unlink()
            two = store_part(writer, 2, SECOND)

        assert left == {handle: FIRST}
        store.complete(KEY, handle, [one, two])
        assert store.get(KEY) == FIRST + SECOND
