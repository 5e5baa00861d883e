import errno
import os
import stat
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.disks import on_small_disks, small_disk
from testing.failing_disks import failing, failing_for_folders, failing_with, recorded_steps
from testing.stores import PART, add_part, begin, new_key
from testing.vault import at_once
from vault.core.errors import ObjectChanged, ObjectNotFound, StorageError, StorageFull, StorageUnavailable
from vault.storage import INSTALLATION_KEY, OBJECTS, ObjectWriter, object_key
from vault.storage.buffers import BufferBudget
from vault.storage.local import LocalStore

OBJECT_ID = uuid.UUID("abcdef01-2345-4789-8abc-def012345678")
KEY = object_key(OBJECT_ID)
CONTENT = bytes(range(256)) * 40

FULL = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG]
UNAVAILABLE = [errno.EROFS, errno.EACCES, errno.EIO]
FAILURES = [
    *(pytest.param(number, StorageFull, id=errno.errorcode[number]) for number in FULL),
    *(pytest.param(number, StorageUnavailable, id=errno.errorcode[number]) for number in UNAVAILABLE),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "var" / "store"


@pytest.fixture
def budget() -> BufferBudget:
    return BufferBudget(2 * PART)


@pytest.fixture
def store(root: Path, budget: BufferBudget) -> LocalStore:
    return LocalStore(root, budget)


@pytest.fixture
def open_umask() -> Iterator[None]:
    """The most careless umask: permissions are then only what the store asks for."""
    before = os.umask(0)
    yield
    os.umask(before)


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}


def finish(writer: ObjectWriter, content: bytes) -> None:
    """Write what is left of an object, and commit it."""
    for start in range(0, len(content), PART):
        add_part(writer, content[start : start + PART])
    writer.commit()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestLayout:
    def test_an_object_lies_under_the_first_two_digits_of_its_id_and_the_installation_id_at_the_top(
        self, store: LocalStore, root: Path
    ) -> None:
        begin(store, KEY, CONTENT).commit()
        store.put_if_absent(INSTALLATION_KEY, b"an id")

        assert files(root) == {f"objects/ab/{OBJECT_ID}", "vault-id"}
        assert (root / "objects" / "ab" / str(OBJECT_ID)).read_bytes() == CONTENT

    def test_an_unfinished_object_lies_only_in_incoming(self, store: LocalStore, root: Path) -> None:
        writer = begin(store, KEY, CONTENT)

        [found] = files(root)
        folder, _, name = found.partition("/")
        assert folder == "incoming"
        assert name.startswith(f"{OBJECT_ID}.")
        assert not store.path(KEY).exists()
        writer.abort()

    def test_two_writes_of_one_key_grow_apart(self, store: LocalStore, root: Path) -> None:
        first, second = begin(store, KEY, b"the first"), begin(store, KEY, b"the second")
        assert len(files(root)) == 2

        second.commit()
        first.commit()

        assert store.get(KEY) == b"the first"
        assert files(root) == {KEY}

    def test_a_name_in_incoming_is_never_shared(
        self, store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("vault.storage.local_layout.secrets.token_hex", lambda _: "00" * 8)
        writer = begin(store, KEY, CONTENT)

        with failing_with(StorageUnavailable, root):
            store.writer(KEY, part_size=PART)

        writer.commit()
        assert store.get(KEY) == CONTENT

    @pytest.mark.usefixtures("open_umask")
    def test_folders_and_files_are_closed_to_others(self, store: LocalStore, root: Path) -> None:
        store.put_if_absent(INSTALLATION_KEY, b"an id")
        begin(store, KEY, CONTENT).commit()
        writer = begin(store, new_key(), CONTENT)

        found = [root, *root.rglob("*")]

        assert {mode(path) for path in found if path.is_dir()} == {0o700}
        assert {mode(path) for path in found if path.is_file()} == {0o600}
        assert len([path for path in found if path.is_file()]) == 3
        writer.abort()

    @pytest.mark.parametrize(
        "key",
        [
            *("", "objects", "objects/ab", "incoming/x", "another-file", "/etc/passwd", "../vault-id"),
            pytest.param(f"objects/../objects/ab/{OBJECT_ID}", id="dots"),
            pytest.param(f"objects/cd/{OBJECT_ID}", id="another-folder"),
            pytest.param(f"objects/ab/{OBJECT_ID}".upper().replace("OBJECTS", "objects"), id="capitals"),
            pytest.param(f"objects/ab/{OBJECT_ID.hex}", id="no-hyphens"),
            pytest.param(f"objects/ab/{OBJECT_ID}\n", id="newline"),
            pytest.param(f"objects/ab/{OBJECT_ID}.x", id="suffix"),
            *("vault-id\n", "vault-id/x"),
        ],
    )
    @pytest.mark.parametrize(
        "use",
        [
            pytest.param(lambda store, key: store.writer(key, part_size=PART), id="writer"),
            pytest.param(lambda store, key: store.open(key, 0, 0), id="open"),
            pytest.param(lambda store, key: store.get(key), id="get"),
            pytest.param(lambda store, key: store.put_if_absent(key, b""), id="put_if_absent"),
            pytest.param(lambda store, key: store.delete(key), id="delete"),
        ],
    )
    def test_a_name_of_another_form_than_an_object_key_is_refused(
        self, store: LocalStore, root: Path, key: str, use: Callable[[LocalStore, str], object]
    ) -> None:
        with pytest.raises(ValueError, match=r"^not an object key$"):
            use(store, key)

        assert not root.exists()


class TestDurability:
    @pytest.fixture
    def steps(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        return recorded_steps(root, monkeypatch)

    @pytest.mark.parametrize(
        ("act", "expected"),
        [
            pytest.param(
                lambda store: begin(store, KEY, CONTENT).commit(),
                [f"flush {OBJECT_ID}", f"rename {OBJECT_ID}", "flush ab"],
                id="commit",
            ),
            pytest.param(
                lambda store: store.put_if_absent(INSTALLATION_KEY, b"an id"),
                ["flush vault-id", "rename vault-id", "flush store"],
                id="put_if_absent",
            ),
            pytest.param(lambda store: store.delete(KEY), [f"unlink {OBJECT_ID}", "flush ab"], id="delete"),
        ],
    )
    def test_bytes_are_flushed_before_the_name_and_the_name_before_the_call_returns(
        self, store: LocalStore, steps: list[str], act: Callable[[LocalStore], object], expected: list[str]
    ) -> None:
        begin(store, KEY, CONTENT).commit()
        steps.clear()

        act(store)

        assert steps == expected

    def test_a_new_folder_is_flushed_into_the_one_that_holds_it(
        self, store: LocalStore, root: Path, steps: list[str]
    ) -> None:
        root.parent.mkdir()

        writer = store.writer(KEY, part_size=PART)

        assert steps == [f"flush {root.parent.name}", f"flush {root.name}", "flush objects", f"flush {root.name}"]
        writer.abort()


class TestWriting:
    def test_a_write_that_takes_only_a_piece_is_carried_on(
        self, store: LocalStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data)[:1000]))

        begin(store, KEY, CONTENT).commit()

        assert store.get(KEY) == CONTENT

    def test_one_buffer_serves_for_all_parts(self, store: LocalStore, budget: BufferBudget) -> None:
        writer = begin(store, KEY, CONTENT)

        assert budget.bytes_out == PART
        writer.abort()

    @pytest.mark.parametrize(("number", "error"), FAILURES)
    @pytest.mark.parametrize("call", ["write", "fsync", "rename"])
    def test_a_failure_leaves_nothing_after_abort(
        self, store: LocalStore, root: Path, budget: BufferBudget, call: str, number: int, error: type[StorageError]
    ) -> None:
        writer = begin(store, KEY, CONTENT)

        with failing_with(error, root, **{call: failing(number)}):
            try:
                finish(writer, b"more")
            finally:
                writer.abort()

        assert files(root) == set()
        assert store.unfinished() == budget.bytes_out == 0
        with pytest.raises(ObjectNotFound):
            store.get(KEY)

    @pytest.mark.parametrize(("number", "error"), FAILURES)
    @pytest.mark.parametrize("call", ["mkdir", "open", "fsync", "rename"])
    def test_a_write_that_cannot_begin_and_a_small_object_that_cannot_be_written_leave_nothing(
        self, store: LocalStore, root: Path, call: str, number: int, error: type[StorageError]
    ) -> None:
        begins = call in ("mkdir", "open")
        if not begins:
            begin(store, KEY, CONTENT).abort()

        with failing_with(error, root, **{call: failing(number)}):
            store.writer(KEY, part_size=PART) if begins else store.put_if_absent(INSTALLATION_KEY, b"an id")

        assert files(root) == set()
        assert store.unfinished() == 0

    def test_a_failed_flush_of_the_folder_is_an_error_although_the_object_is_there(
        self, store: LocalStore, root: Path, budget: BufferBudget
    ) -> None:
        writer = begin(store, KEY, CONTENT)

        with failing_with(StorageUnavailable, root, fsync=failing_for_folders(errno.EIO)):
            writer.commit()
        writer.abort()

        assert store.get(KEY) == CONTENT
        assert store.unfinished() == budget.bytes_out == 0

    @pytest.mark.parametrize("end", ["commit", "abort"])
    def test_an_error_of_close_changes_no_outcome(
        self, store: LocalStore, budget: BufferBudget, monkeypatch: pytest.MonkeyPatch, end: str
    ) -> None:
        writer = begin(store, KEY, CONTENT)
        close = os.close

        def close_and_fail(fd: int) -> None:
            is_file = stat.S_ISREG(os.fstat(fd).st_mode)
            close(fd)
            if is_file:
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

        with monkeypatch.context() as patch:
            patch.setattr(os, "close", close_and_fail)
            getattr(writer, end)()

        assert [found.key for found in store.list("")] == ([KEY] if end == "commit" else [])
        assert store.unfinished() == budget.bytes_out == 0

    def test_abort_raises_nothing_when_the_disk_is_gone_or_when_repeated(
        self, store: LocalStore, budget: BufferBudget, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        writer = begin(store, KEY, CONTENT)
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", failing(errno.EIO))
            writer.abort()

        assert (budget.bytes_out, store.unfinished()) == (0, 1)
        writer.abort()
        assert (budget.bytes_out, store.unfinished()) == (0, 0)


@on_small_disks
def test_a_disk_that_is_really_full_is_full_and_usable_after_abort(tmp_path: Path, budget: BufferBudget) -> None:
    with small_disk(tmp_path / "disk", 128 * 1024):
        store = LocalStore(tmp_path / "disk" / "store", budget)
        begin(store, KEY, CONTENT).commit()
        writer = store.writer(new_key(), part_size=PART)

        with failing_with(StorageFull, tmp_path):
            finish(writer, bytes(64 * PART))
        writer.abort()

        assert store.unfinished() == budget.bytes_out == 0
        assert store.get(KEY) == CONTENT
        begin(store, new_key(), CONTENT).commit()


class TestReading:
    def test_a_reader_keeps_its_object_when_that_is_deleted(self, store: LocalStore) -> None:
        begin(store, KEY, CONTENT).commit()
        reader = store.open(KEY, 0, len(CONTENT) - 1)
        store.delete(KEY)

        assert reader.read(len(CONTENT)) == CONTENT
        reader.close()

    def test_an_object_cut_short_while_it_is_read_is_unavailable(self, store: LocalStore) -> None:
        begin(store, KEY, CONTENT).commit()
        reader = store.open(KEY, 0, len(CONTENT) - 1)
        reader.read(10)
        os.truncate(store.path(KEY), 100)

        with pytest.raises(StorageUnavailable):
            reader.read(91)
        reader.close()

    def test_an_object_exchanged_for_one_of_the_same_size_and_time_is_changed(
        self, store: LocalStore, root: Path
    ) -> None:
        begin(store, KEY, CONTENT).commit()
        reader = store.open(KEY, 0, 0)
        reader.close()
        facts = store.path(KEY).stat()
        other = root / "other"
        other.write_bytes(CONTENT[::-1])
        os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        other.replace(store.path(KEY))

        with pytest.raises(ObjectChanged):
            store.open(KEY, 0, 0, etag=reader.etag)

    def test_an_object_cut_to_nothing_is_changed_not_empty(self, store: LocalStore) -> None:
        begin(store, KEY, CONTENT).commit()
        os.truncate(store.path(KEY), 0)

        with pytest.raises(ObjectChanged):
            store.open(KEY, 0, 0)

    def test_a_disk_error_and_a_missing_permission_are_unavailable_not_missing(
        self, store: LocalStore, root: Path
    ) -> None:
        begin(store, KEY, CONTENT).commit()
        reader = store.open(KEY, 0, 10)

        with failing_with(StorageUnavailable, root, pread=failing(errno.EIO)) as caught:
            reader.read(1)
        reader.close()
        with failing_with(StorageUnavailable, root, open=failing(errno.EACCES)):
            store.open(KEY, 0, 0)

        assert caught.value.reason == "EIO"

    def test_a_folder_in_the_place_of_an_object_is_unavailable(self, store: LocalStore, root: Path) -> None:
        store.path(KEY).mkdir(parents=True)

        with failing_with(StorageUnavailable, root):
            store.get(KEY)


class TestPutIfAbsent:
    @pytest.mark.parametrize(
        ("call", "fails"),
        [
            *(("link", failing(number)) for number in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)),
            ("fsync", failing_for_folders(errno.EINVAL)),
        ],
    )
    def test_a_file_system_without_hard_links_or_that_flushes_no_folders_is_good_enough(
        self, store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch, call: str, fails: Callable[..., Any]
    ) -> None:
        monkeypatch.setattr(os, call, fails)

        store.put_if_absent(INSTALLATION_KEY, b"an id")
        begin(store, KEY, CONTENT).commit()

        assert store.get(INSTALLATION_KEY) == b"an id"
        assert files(root) == {INSTALLATION_KEY, KEY}

    def test_a_real_file_system_without_hard_links_is_good_enough(self, fat_disk: Path, budget: BufferBudget) -> None:
        store = LocalStore(fat_disk / "store", budget)

        store.put_if_absent(INSTALLATION_KEY, b"an id")
        begin(store, KEY, CONTENT).commit()

        assert store.get(INSTALLATION_KEY) == b"an id"
        assert store.get(KEY) == CONTENT
        store.health()

    @pytest.fixture
    def fat_disk(self, tmp_path: Path) -> Iterator[Path]:
        """A disk as cameras and sticks have it."""
        image, disk = tmp_path / "fat.img", tmp_path / "fat"
        disk.mkdir()
        with image.open("wb") as file:
            file.truncate(4 * 1024**2)
        for command in (["mkfs.vfat", str(image)], ["mount", "-o", "loop", "-t", "vfat", str(image), str(disk)]):
            try:
                subprocess.run(command, capture_output=True, text=True, check=True)
            except FileNotFoundError:
                pytest.skip(f"{command[0]} is not installed")
            except subprocess.CalledProcessError as exc:
                pytest.skip(f"no FAT file system can be mounted here: {exc.stderr.strip()}")
        yield disk
        subprocess.run(["umount", str(disk)], check=True)

    def test_an_object_that_another_process_wrote_first_stays(
        self, store: LocalStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        create = os.open

        def create_second(path: Path, flags: int, *args: int) -> int:
            if Path(path) == store.path(INSTALLATION_KEY) and flags & os.O_EXCL:
                Path(path).write_bytes(b"theirs")
            return create(path, flags, *args)

        monkeypatch.setattr(os, "open", create_second)

        store.put_if_absent(INSTALLATION_KEY, b"ours")

        assert store.get(INSTALLATION_KEY) == b"theirs"
        assert store.unfinished() == 0

    def test_of_many_processes_one_wins_and_no_reader_sees_a_piece_of_it(self, store: LocalStore) -> None:
        contents = [bytes([number]) * 100_000 for number in range(8)]

        def put_and_get(number: int) -> bytes:
            store.put_if_absent(INSTALLATION_KEY, contents[number])
            return store.get(INSTALLATION_KEY)

        found = at_once(8, put_and_get)

        assert len(set(found)) == 1
        assert found[0] in contents

    def test_a_claim_of_a_process_that_died_is_taken_over(
        self, store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("vault.storage.local._CLAIM_SECONDS", 0.02)
        root.mkdir(parents=True)
        store.path(INSTALLATION_KEY).touch()

        with pytest.raises(ObjectNotFound):
            store.get(INSTALLATION_KEY)
        store.put_if_absent(INSTALLATION_KEY, b"an id")

        assert store.get(INSTALLATION_KEY) == b"an id"


def test_a_folder_that_lost_its_store_is_not_written_into(store: LocalStore, root: Path) -> None:
    """The disk was unmounted after the id was confirmed."""
    store.put_if_absent(INSTALLATION_KEY, b"an id")
    store.get(INSTALLATION_KEY)
    root.rename(root.with_name("elsewhere"))
    root.mkdir()

    with pytest.raises(StorageUnavailable):
        store.writer(KEY, part_size=PART)

    assert list(root.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
def test_a_store_that_cannot_be_written_is_not_healthy(store: LocalStore, root: Path, number: int) -> None:
    store.put_if_absent(INSTALLATION_KEY, b"an id")
    create = os.open

    def read_only(path: Path, flags: int, *args: int) -> int:
        return failing(number)() if flags & os.O_CREAT else create(path, flags, *args)  # type: ignore[no-any-return]

    with failing_with(StorageUnavailable, root, open=read_only):
        store.health()


class TestDeleting:
    @pytest.mark.parametrize("number", UNAVAILABLE, ids=errno.errorcode.get)
    def test_an_object_that_cannot_be_removed_is_an_error(self, store: LocalStore, root: Path, number: int) -> None:
        begin(store, KEY, CONTENT).commit()

        with failing_with(StorageUnavailable, root, unlink=failing(number)):
            store.delete(KEY)

        assert store.get(KEY) == CONTENT

    def test_an_object_that_another_process_removes_meanwhile_is_deleted(
        self, store: LocalStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begin(store, KEY, CONTENT).commit()
        unlink = os.unlink

        def unlink_second(path: Path) -> None:
            unlink(path)
            unlink(path)

        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", unlink_second)
            store.delete(KEY)

        assert list(store.list("")) == []


class TestListing:
    def test_an_object_that_goes_meanwhile_is_passed_over(self, store: LocalStore) -> None:
        keys = [f"{OBJECTS}ab/ab{number:06x}-0000-4000-8000-000000000000" for number in range(3)]
        for key in keys:
            begin(store, key, CONTENT).commit()

        listing = store.list(OBJECTS)
        listed = [next(listing).key]
        gone = next(key for key in keys if key not in listed)
        store.delete(gone)
        listed += [found.key for found in listing]

        assert sorted(listed) == [key for key in keys if key != gone]

    def test_a_folder_that_cannot_be_read_is_unavailable_not_empty(self, store: LocalStore, root: Path) -> None:
        begin(store, KEY, CONTENT).commit()
        real = os.scandir

        def scandir(path: Path) -> Any:
            return failing(errno.EACCES)() if Path(path).name == "ab" else real(path)

        with failing_with(StorageUnavailable, root, scandir=scandir):
            list(store.list(OBJECTS))


def test_a_store_without_its_folder_is_empty_and_unhealthy_and_makes_none(store: LocalStore, root: Path) -> None:
    assert list(store.list("")) == []
    assert store.unfinished() == 0
    store.delete(KEY)
    with pytest.raises(ObjectNotFound):
        store.get(KEY)
    with failing_with(StorageUnavailable, root):
        store.health()

    assert not root.exists()


def test_the_buffer_of_a_file_does_not_grow_with_the_parts_that_s3_would_want(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, BufferBudget(4 * 1024 * 1024))
    writers = [store.writer(new_key(), part_size=1024**3) for _ in range(4)]

    sizes = [len(writer.buffer()) for writer in writers]

    assert sizes == [1024 * 1024] * 4
    for writer in writers:
        writer.abort()


def test_an_object_stays_whole_when_the_one_that_replaces_it_cannot_be_published(store: LocalStore, root: Path) -> None:
    store.put("vault-epoch", b"before")

    with failing_with(StorageUnavailable, root, rename=failing(errno.EIO)):
        store.put("vault-epoch", b"after")

    assert store.get("vault-epoch") == b"before"
