"""Keys in the running service: rotation beside traffic, a start without a key, and nothing secret in any output."""

import base64
import os
import random
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
import sqlalchemy as sa

from testing.sealing import altered
from testing.seeding import content_of, seed_files
from testing.servers import wait_until
from testing.services import postgres_database
from testing.stack import Client, Process, Stack, embedded
from vault.audit.models import AuditEvent
from vault.auth.models import User
from vault.core.principal import Principal
from vault.encryption.header import Header, open_keys
from vault.encryption.keyring import WrappedKey, generate_master_key
from vault.mail.models import MailJob
from vault.objects.models import ObjectState, SealedObject
from vault.settings.config import ROOT
from vault.storage import object_key


class Traffic:
    """Uploads, downloads and deletions while keys move. What fails is kept in `wrong`."""

    def __init__(self, person: Client, seeded: list[uuid.UUID]) -> None:
        self._stack = person
        self._seeded = seeded
        self._stop = threading.Event()
        self.wrong: list[str] = []
        self.uploaded: dict[str, bytes] = {}
        self.deleted: list[int] = []
        self.read = 0
        # A tenth may be deleted, the others are read.
        self._deletable = iter(range(0, len(seeded), 10))
        self._threads = [
            threading.Thread(target=self._repeat, args=(work, person.token))
            for work in (self._upload, self._download, self._download, self._delete)
        ]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=120)

    def _repeat(self, work: Callable[[requests.Session], None], token: str) -> None:
        with Client(self._stack.url, token) as person:
            while not self._stop.is_set():
                try:
                    work(person)
                except requests.RequestException as exc:
                    self.wrong.append(repr(exc))

    def _upload(self, person: requests.Session) -> None:
        content = os.urandom(random.choice([10, 3000, 700_000]))
        answer = person.post(f"{self._stack.url}/files?name=during.bin", data=content, timeout=120)
        if self._is(answer, 201):
            self.uploaded[answer.json()["id"]] = content

    def _download(self, person: requests.Session) -> None:
        number = random.randrange(len(self._seeded))
        if number % 10 == 0:
            return
        answer = person.get(f"{self._stack.url}/files/{self._seeded[number]}/content", timeout=120)
        if self._is(answer, 200) and answer.content != content_of(number):
            self.wrong.append(f"content of {number}")
        self.read += 1

    def _delete(self, person: requests.Session) -> None:
        number = next(self._deletable, None)
        if number is None:
            self._stop.wait(0.1)
            return
        answer = person.delete(f"{self._stack.url}/files/{self._seeded[number]}", timeout=120)
        if self._is(answer, 204):
            self.deleted.append(number)

    def _is(self, answer: requests.Response, status: int) -> bool:
        if answer.status_code != status:
            self.wrong.append(f"{answer.request.method} {answer.status_code}")
        return answer.status_code == status


def facts_of_objects(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What would change if an object were written again: inode, time and size of each file."""
    facts = ((path.name, path.stat()) for path in (folder / "store" / "objects").rglob("*") if path.is_file())
    return {name: (stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in facts}


def run_until_done(stack: Stack, *, kills: int) -> int:
    """Keep two runs of rewrap going, and kill one of them at a random moment each time that rows have moved.

    Returns how many were killed while rows were left to move.
    """

    def left() -> int:
        return sum(use.rows for use in stack.container.keys.rewrapper.waiting())

    killed, before, running = 0, left(), [start(stack), start(stack)]
    while killed < kills and before:
        wait_until(lambda: left() < before, seconds=60, what="rows moving")  # noqa: B023  # called at once
        time.sleep(random.uniform(0, 0.05))
        victim = random.randrange(2)
        if running[victim].popen.poll() is None:
            running[victim].kill()
            killed += left() > 0
        running[victim] = start(stack)
        before = left()
    for process in running:
        process.popen.wait(timeout=120)
    last = start(stack)
    last.popen.wait(timeout=120)
    assert last.popen.returncode == 0, last.output
    assert "0 remain." in last.output
    return killed


def start(stack: Stack) -> Process:
    return stack.start("flask", "keys", "rewrap", "--batch", "5", name="rewrap")


@pytest.mark.parametrize(
    ("count", "kills"),
    [
        pytest.param(500, 1, id="500 rows", marks=pytest.mark.slow),
        pytest.param(10_000, 20, id="10000 rows", marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    ],
)
def test_rewrap_beside_traffic_killed_at_random_and_twice_at_once(tmp_path: Path, count: int, kills: int) -> None:
    with postgres_database() as url, embedded(tmp_path, DATABASE_URL=url, WEB_WORKERS="1") as old:
        stack = old.beside(MASTER_KEY=f"{generate_master_key()},{old.env['MASTER_KEY']}")
        stack.start_api()
        person = stack.sign_up()
        # The first upload also ties the database to the store.
        person.upload(b"first")
        ((owner_id,),) = stack.sql("SELECT id FROM users")
        seeded = seed_files(old.container, owner_id, count, store_dir=tmp_path / "store")
        before = facts_of_objects(tmp_path)

        with Traffic(person, seeded) as traffic:
            killed = run_until_done(stack, kills=kills)

        assert_all_is_there(stack, traffic, seeded)
        after = facts_of_objects(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert killed >= (kills + 1) // 2


def assert_all_is_there(stack: Stack, traffic: Traffic, seeded: list[uuid.UUID]) -> None:
    """Nothing failed, every key has moved, and every file that was not deleted is readable."""
    assert traffic.wrong == []
    assert traffic.uploaded
    assert traffic.deleted
    assert traffic.read
    container = stack.container
    primary = container.keys.usage.primary()
    assert {(use.provider, use.key_ref) for use in container.keys.usage.by_ref()} == {primary}
    with container.core.sessions.begin() as session:
        states = dict(session.execute(sa.select(SealedObject.id, SealedObject.state)).all())  # type: ignore[arg-type]
        owner_id = session.scalars(sa.select(User.id)).one()
    gone = {seeded[number] for number in traffic.deleted}
    assert {states[file_id] for file_id in gone} == {ObjectState.SHREDDED}
    expected = {file_id: content_of(number) for number, file_id in enumerate(seeded) if file_id not in gone}
    expected |= {uuid.UUID(file_id): content for file_id, content in traffic.uploaded.items()}
    downloads = container.files.downloads
    for file_id, content in expected.items():
        found = downloads.find(Principal(owner_id), file_id)
        download = downloads.open(Principal(owner_id), found, None, is_view=False)
        assert b"".join(download) == content
        download.close()


def test_a_start_without_a_key_that_files_need_is_refused_unless_it_is_asked_for(tmp_path: Path) -> None:
    with embedded(tmp_path) as stack:
        stack.start_api()
        person = stack.sign_up()
        stored = person.upload(b"content")
        stack.processes[0].kill()
        ref = stack.container.keys.usage.primary()[1]
        stack.env["MASTER_KEY"] = generate_master_key()

        api = stack.start("gunicorn", "--config", "gunicorn.conf.py", "wsgi:app", name="refused-api")
        worker = stack.start_worker()
        status = stack.run("flask", "keys", "status", check=False)
        database = stack.run("flask", "db", "current")

        for process in (api, worker):
            assert process.popen.wait(timeout=120) == 1
            assert f"  {ref}\n" in process.output
            assert "START_DEGRADED=1" in process.output
            assert "Traceback" not in process.output
        assert (status.returncode, database.returncode) == (1, 0)
        stack.env["START_DEGRADED"] = "1"
        stack.start_api()
        assert person.get(f"{stack.url}/files/{stored['id']}/content").json()["code"] == "key_unavailable"
        assert person.post(f"{stack.url}/files?name=b", data=b"new").status_code == 201


def start_with_env_file(stack: Stack) -> Process:
    """The API with its settings in `.env`, as an operator has them, in a copy of the project."""
    project = stack.folder / "project"
    shutil.copytree(ROOT / "vault", project / "vault")
    for name in ("gunicorn.conf.py", "wsgi.py"):
        shutil.copy(ROOT / name, project)
    write_env_file(stack)
    command = ["gunicorn", "--config", "gunicorn.conf.py", "--bind", f"127.0.0.1:{stack.port}", "wsgi:app"]
    basics = {"PATH": os.environ["PATH"], "TMPDIR": str(stack.folder)}
    return stack.start(*command, name="api-with-env-file", cwd=project, env=basics)


def write_env_file(stack: Stack, **settings: str) -> None:
    lines = [f"{name}='{value}'" for name, value in {**stack.env, **settings}.items()]
    (stack.folder / "project" / ".env").write_text("\n".join(lines))


def test_keys_move_to_a_new_one_only_when_every_process_holds_it_as_it_does_after_a_reload(tmp_path: Path) -> None:
    with embedded(tmp_path) as stack:
        api = start_with_env_file(stack)
        wait_until(stack.is_up, seconds=60, what="the API")
        person = stack.sign_up()
        stored = person.upload(b"content")
        content = f"{stack.url}/files/{stored['id']}/content"
        old = stack.container.keys.usage.primary()[1]
        wait_until(lambda: stack.container.processes.lacking([]) == 2, seconds=30, what="a row of each process")
        stack.env["MASTER_KEY"] = f"{generate_master_key()},{stack.env['MASTER_KEY']}"
        write_env_file(stack)

        refused = stack.run("flask", "keys", "rewrap", check=False)

        assert refused.returncode == 1
        assert "2 running processes" in refused.stderr
        assert person.get(content).content == b"content"
        api.popen.send_signal(signal.SIGHUP)

        def has_moved() -> bool:
            return stack.run("flask", "keys", "rewrap", check=False).returncode == 0

        wait_until(has_moved, seconds=90, what="the new processes in place of the old")
        assert old not in {use.key_ref for use in stack.container.keys.usage.by_ref()}
        assert person.get(content).content == b"content"
        assert person.post(f"{stack.url}/files?name=b", data=b"new").status_code == 201

        write_env_file(stack, MASTER_KEY="a slip of the hand")
        api.popen.send_signal(signal.SIGHUP)

        wait_until(lambda: "reload_refused" in api.output, seconds=30, what="the refusal in the log")
        assert person.get(content).content == b"content"
        assert api.popen.poll() is None
        assert "a slip" not in api.output


# The commands of a run in one process, since most of a command's time is its start.
ALL_COMMANDS = """
import sys
from flask.cli import ScriptInfo
from vault.cli import create_cli_app
app = create_cli_app()
for command in sys.argv[1:]:
    try:
        app.cli.main(command.split(), obj=ScriptInfo(create_app=lambda: app))
    except SystemExit:
        print(f"\\nEnd of {command}", flush=True)
"""


class Keys:
    """Every data key, wrapped key and derived key that the installation has had, gathered as it goes."""

    def __init__(self) -> None:
        self.raw: dict[str, bytes] = {}
        self.texts: dict[str, str] = {}

    def gather(self, stack: Stack) -> None:
        for number, key in enumerate(stack.env["MASTER_KEY"].split(",")):
            self.texts[f"master key {number} {key[-4:]}"] = key
            self.raw[f"raw master key {number} {key[-4:]}"] = base64.urlsafe_b64decode(key)
        with stack.container.core.sessions.begin() as session:
            rows = session.scalars(sa.select(SealedObject).where(SealedObject.encrypted_data_key.is_not(None))).all()
        for row in rows:
            blob = row.encrypted_data_key or ""
            dek = stack.container.keys.ring.unwrap(WrappedKey(row.key_provider, row.key_ref, blob), row.object_id)
            derived = open_keys(dek, Header.parse(row.header))
            self.texts[f"wrapped key {blob[-8:]}"] = blob
            self.raw[f"data key of {row.object_id}"] = dek
            self.raw[f"content key of {row.object_id}"] = derived.encryption
            self.raw[f"metadata key of {row.object_id}"] = derived.metadata

    def found_in(self, text: bytes) -> list[str]:
        """Return the names of keys that a text holds, raw or as programs write them."""
        forms = {name: [key.encode()] for name, key in self.texts.items()}
        for name, key in self.raw.items():
            encoded = [base64.b64encode(key).rstrip(b"="), base64.urlsafe_b64encode(key).rstrip(b"=")]
            written = [key.hex(), key.hex().upper(), repr(key)[2:-1], str(list(key))]
            forms[name] = [key, *encoded, *(text.encode() for text in written)]
        return [name for name, all_forms in forms.items() if any(form in text for form in all_forms)]


def test_no_key_is_in_anything_that_a_full_run_writes(tmp_path: Path) -> None:
    keys = Keys()
    texts: dict[str, bytes] = {}
    with embedded(tmp_path) as stack:
        stack.env["LOG_LEVEL"] = "DEBUG"
        stack.start_api()
        stack.start_worker()
        person = stack.sign_up()
        ids = [person.upload(os.urandom(size))["id"] for size in (0, 1, 5000, 300_000, 9_000_000)]
        keys.gather(stack)
        answers = [person.get(f"{stack.url}/files/{file_id}/content") for file_id in ids]
        answers += [person.get(f"{stack.url}/files/{file_id}") for file_id in ids]
        _damage(stack, ids)
        answers += [person.get(f"{stack.url}/files/{file_id}/content") for file_id in ids[:3]]
        answers += [person.delete(f"{stack.url}/files/{ids[4]}")]

        commands = ["keys status", "keys check", "keys rewrap --batch 1", "keys verify --all", "files verify --all"]
        commands.append(f"files reencrypt {ids[3]} {ids[0]}")
        stack.env["MASTER_KEY"] = f"{generate_master_key()},{stack.env['MASTER_KEY']}"
        old = stack.container.keys.usage.primary()[1]
        # Those that run hold the old key alone, and no file may move to one that they lack.
        for process in stack.processes:
            process.popen.terminate()
            process.popen.wait(timeout=60)
        done = stack.run("python", "-c", ALL_COMMANDS, *commands, f"keys retire {old}")
        texts["commands"] = (done.stdout + done.stderr).encode()
        rotated = Stack(tmp_path, dict(stack.env))
        with rotated.container.core.engine.begin() as connection:
            # The damaged rows cannot be unwrapped and have been gathered before.
            damaged = "SELECT id FROM objects WHERE encrypted_data_key LIKE 'damaged%'"
            connection.execute(sa.text(f"DELETE FROM entries WHERE current_id IN ({damaged})"))
            connection.execute(sa.text(f"DELETE FROM objects WHERE id IN ({damaged})"))
        keys.gather(rotated)
        wait_until(lambda: "shredded" in stack.states() or len(stack.states()) < 5, what="the deletion")
        with rotated.container.core.sessions.begin() as session:
            tables = [*session.scalars(sa.select(AuditEvent)), *session.scalars(sa.select(MailJob))]
            texts["audit and mail"] = "\n".join(str(vars(row)) for row in tables).encode()
        texts["containers"] = f"{stack.container!r} {rotated.container!r} {rotated.container.settings!r}".encode()
        rotated.close()
        # A content answer may hold key bytes by chance only; what errors say is what counts.
        texts["answers"] = b"".join(answer.content for answer in answers if not answer.ok)
    for path in (*tmp_path.glob("*.log"), *(tmp_path / "queue").rglob("*"), *(tmp_path / "tmp").rglob("*")):
        if path.is_file():
            texts[path.name] = path.read_bytes()

    assert len(keys.raw) > 12
    assert texts["commands"].count(b"\nEnd of ") == 7
    assert b"Moved" in texts["commands"]
    assert any(b"integrity_failed" in text for name, text in texts.items() if name.startswith("api"))
    assert b"key_unwrap_failed" in texts["answers"]
    assert {name: found for name, text in texts.items() if (found := keys.found_in(text))} == {}


def _damage(stack: Stack, ids: list[str]) -> None:
    """One file whose wrapped key, one whose object, and one whose digest is not what it was."""
    container = stack.container
    with container.core.sessions.begin() as session:
        rows = {str(row.id): row for row in session.scalars(sa.select(SealedObject))}
        session.execute(
            sa.update(SealedObject).where(SealedObject.id == rows[ids[0]].id).values(encrypted_data_key="damaged")
        )
        session.execute(
            sa.update(SealedObject).where(SealedObject.id == rows[ids[2]].id).values(sealed_digest=bytes(64))
        )
    path = Path(stack.env["STORAGE_DIR"]) / object_key(rows[ids[1]].object_id)
    path.write_bytes(altered(path.read_bytes()))
