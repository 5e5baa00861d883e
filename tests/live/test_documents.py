"""The commands of README.md and docs/ as they stand there: each block of a shell's commands is run, or says why not.

Only what readers have to put in themselves is put in: the port, a token, an id, the folder of a backup.
"""

import os
import re
import shlex
import subprocess
import textwrap
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import psycopg2
import pytest

from testing.servers import wait_until
from testing.services import postgres_database, program
from testing.stack import BIN, Process, Stack, embedded
from vault.cli import create_cli_app
from vault.encryption.keyring import generate_master_key
from vault.settings.config import ROOT

DOCUMENTS: Final = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
_OTHER_BLOCK: Final = re.compile(r"^ *```(?:js|python)\n(.*)\n", re.MULTILINE)
_BLOCK: Final = re.compile(r"^(?P<indent> *)```sh\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)


def blocks() -> dict[str, str]:
    """Each block of commands by its document and its first line."""
    found = {}
    for path in DOCUMENTS:
        for block in _BLOCK.finditer(path.read_text()):
            text = textwrap.dedent(block["text"])
            name = f"{path.relative_to(ROOT)}: {text.splitlines()[0].split('  ')[0]}"
            assert name not in found, name
            found[name] = text
    return found


BLOCKS: Final = blocks()


@dataclass
class Place:
    """An installation, and a folder to type commands in."""

    stack: Stack
    folder: Path
    running: list[Process]

    def type(
        self, text: str, *, put_in: Mapping[str, str] | None = None, cwd: Path | None = None, **environ: str
    ) -> str:
        """Run a block of commands by bash, which ends at the first that fails; returns what it printed."""
        for mark, value in (put_in or {}).items():
            assert mark in text, mark
            text = text.replace(mark, value)
        env = {**self.stack.environ(), **environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=cwd or ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def stop_all(self) -> None:
        for process in self.running:
            process.popen.terminate()
        for process in self.running:
            process.popen.wait(timeout=60)
        self.running.clear()

    def mailed(self, page: str, number: int) -> str:
        """The token of the link to a page in the mail of this number, from 1, once the worker has printed it."""
        link = re.compile(rf"{page}\?token=([\w-]+)")
        wait_until(lambda: len(link.findall(self.running[1].output)) >= number, seconds=60, what="the mail")
        return str(link.findall(self.running[1].output)[number - 1])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with embedded(tmp_path_factory.mktemp("documents")) as stack:
        folder = tmp_path_factory.mktemp("typed")
        yield Place(stack, folder, [stack.start_api(), stack.start_worker()])


def start_here(place: Place, _readme: str, _install: str) -> None:
    """tests/live/test_scripts.py runs this line in terminals."""
    assert 'Terminal(self.folder, "scripts/run", self.env)' in (ROOT / "tests/live/test_scripts.py").read_text()


def first_file(place: Place, names: str, token: str, journey: str) -> None:
    put_in = {"127.0.0.1:8000": f"127.0.0.1:{place.stack.port}"}
    place.type(names, put_in=put_in, cwd=place.folder)

    shown = place.type(
        "\n".join((names.partition("curl")[0], token, journey)),
        put_in={**put_in, "the-token-from-the-link": place.mailed("verify-email", 1)},
        cwd=place.folder,
    )

    assert "The copy is identical." in shown
    assert shown.endswith("204\n")


def the_api(place: Place, start: str, signing_in: str, *pages: str) -> None:
    """The pages one after the other: the last two as an administrator, the others as people of their own."""
    strict = f'curl() {{ command curl --fail --show-error "$@"; }}\n{start}'
    put_in = {"127.0.0.1:8000": f"127.0.0.1:{place.stack.port}"}

    def type_page(text: str, **environ: str) -> str:
        return place.type(f"{strict}\n{text}", put_in=put_in, cwd=place.folder, **environ)

    registering, confirming, resetting = re.split(r"^(?=TOKEN=|RESET=)", signing_in, flags=re.MULTILINE)
    type_page(registering)
    token = place.mailed("verify-email", 2)
    assert "anna@example.org" in type_page(confirming.replace("the-token-from-the-link", token))
    type_page(resetting.replace("the-token-from-the-reset-link", place.mailed("reset-password", 1)))

    files, folders, resumable, lists, account, audit, administration = pages
    assert type_page(files, AUTH=header_of(place, "otto@example.org")).count("204\n") == 1
    shown = type_page(folders, AUTH=header_of(place, "fritz@example.org"))
    assert "first\n" in shown
    assert shown.endswith("204\n")
    shown = type_page(resumable, AUTH=header_of(place, "tilda@example.org"))
    assert "The connection broke.\nThe film is identical.\n" in shown
    assert shown.endswith("204\n")
    assert "report.pdf" in type_page(lists, AUTH=header_of(place, "ida@example.org"))
    assert type_page(account, AUTH=header_of(place, "berta@example.org")).endswith("204\n")
    administrator = header_of(place, "api-boss@example.org", role="admin")
    assert '"items"' in type_page(audit, AUTH=administrator)
    assert "204\n" in type_page(administration, AUTH=administrator)
    (exported,) = place.folder.glob("*.csv")
    assert "user.registered" in exported.read_text()
    exported.unlink()


def header_of(place: Place, email: str, *, role: str = "user") -> str:
    person = place.stack.sign_up(email)
    place.stack.sql("UPDATE users SET role = :role WHERE email = :email", role=role, email=email)
    return person.authorization


def an_export(place: Place, export: str) -> None:
    token = header_of(place, "boss@example.org", role="admin").rpartition(" ")[2]

    place.type(export, cwd=place.folder, TOKEN=token)

    (exported,) = place.folder.glob("*.csv")
    assert "boss@example.org" in exported.read_text()


def an_administrator(place: Place, create: str) -> None:
    place.type(create, put_in={"boss@example.org": "other-boss@example.org"})


def keys_and_files(place: Place, see: str, leak: str) -> None:
    """With a file that the old key wraps. No process runs meanwhile that does not know the new one."""
    place.stack.sign_up("keys@example.org").upload(b"content")
    place.stop_all()
    old = place.stack.env["MASTER_KEY"]
    ref = place.stack.container.keys.usage.primary()[1]
    assert ref in place.type(see)

    place.stack.env["MASTER_KEY"] = f"{generate_master_key()},{old}"
    place.type(leak, put_in={"local:…": ref})

    place.stack.env["MASTER_KEY"] = place.stack.env["MASTER_KEY"].partition(",")[0]
    assert re.search(r"([1-9]\d*) files: \1 whole, 0 damaged", place.type("flask files verify --all"))


def queued_mail(place: Place, queue: str) -> None:
    place.type("flask users create-admin third@example.org")
    ((job,),) = place.stack.sql("SELECT id FROM mail_jobs ORDER BY created_at DESC LIMIT 1")
    place.stack.sql("UPDATE mail_jobs SET state = 'failed' WHERE id = :id", id=job)

    place.type(queue, put_in={"JOB_ID": str(uuid.UUID(str(job)))})


def processes(place: Place, text: str) -> None:
    """Each line in a terminal of its own, until all of them say that they run."""
    place.stop_all()
    lines = [line.replace(".venv/bin/", "") for line in text.splitlines()]
    started = []
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:3] == ["flask", "db", "upgrade"]:
            place.type(line)
        else:
            started.append(place.stack.start(*words, name=words[0]))
    place.running.extend(started)

    def are_there() -> bool:
        for process in started:
            assert process.popen.poll() is None, process.output
        kinds = [kind for (kind,) in place.stack.sql("SELECT kind FROM processes")]
        return "beat" in kinds and kinds.count("worker") >= 2

    wait_until(are_there, seconds=100, what="the processes being there")
    if any("gunicorn" in line for line in lines):
        assert place.stack.is_up()
    place.stop_all()


def postgresql_backup(place: Place, backup: str, restore: str) -> None:
    client = program("pg_dump", package="postgresql-client")
    program("pg_restore", package="postgresql-client")
    folder, store = place.folder / "postgresql", place.folder / "remote"
    folder.mkdir()
    (store / "vault").mkdir(parents=True)
    (store / "vault/object").write_bytes(b"sealed")
    (folder / "rclone.conf").write_text(f"[vault-s3]\ntype = alias\nremote = {store}\n")
    with postgres_database() as source, postgres_database() as target:
        _require_client_of(client, source)
        _execute(source, "CREATE TABLE kept (id int); INSERT INTO kept VALUES (42)")

        environ = {"RCLONE_CONFIG": str(folder / "rclone.conf"), "DATABASE_URL": source}
        place.type(backup, put_in={"/backup": f"{folder}/backup"}, cwd=folder, **environ)
        place.type(restore, cwd=folder, DATABASE_URL=target)

        assert _execute(target, "SELECT id FROM kept") == [(42,)]
    assert (folder / "backup/objects/object").read_bytes() == b"sealed"


def sqlite_backup(place: Place, backup: str) -> None:
    program("sqlite3", package="sqlite3")
    program("rsync", package="rsync")
    target = place.folder / "backup"
    target.mkdir()
    place.type("flask users create-admin copied@example.org")
    database, store = place.stack.container.settings.database.url, place.stack.container.settings.storage.directory

    place.type(
        backup,
        put_in={"var/vault.db": database.removeprefix("sqlite:///"), "var/store": str(store), "/backup": str(target)},
    )

    there = {"DATABASE_URL": f"sqlite:///{target}/vault.db", "STORAGE_DIR": f"{target}/store"}
    assert "copied@example.org" in place.type("flask users list", **there)
    place.type("flask files verify --all", **there)


def _require_client_of(program: str, url: str) -> None:
    version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    client = re.search(r"(\d+)\.", version)
    assert client is not None
    server = str(_execute(url, "SHOW server_version")[0][0])
    if int(client[1]) < int(server.partition(".")[0]):
        pytest.skip(f"pg_dump {client[1]} takes no copy of PostgreSQL {server}")


def _execute(url: str, statement: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


API_PAGES: Final = ("README", "sign-in", "files", "folders", "resumable", "lists", "account", "audit", "administration")
# A block is named by its document and how its first line begins, all blocks of a page by the document alone. The order
# matters: the later ones stop what the first ones ask. Each function gets the texts.
RUN: Final[list[tuple[Callable[..., None], list[str]]]] = [
    (start_here, ["README.md: ./scripts/run", "docs/operate/install.md: ./scripts/run"]),
    (first_file, ["README.md: VAULT=", "README.md: TOKEN=", 'README.md: curl -H "$JSON" $VAULT/auth/verify-email']),
    (the_api, [f"docs/api/{page}.md" for page in API_PAGES]),
    (an_export, ["docs/operate/audit-log.md: curl -fOJ"]),
    (an_administrator, ["docs/operate/administrators.md: flask users create-admin"]),
    (keys_and_files, ["docs/operate/keys.md: flask keys status", "docs/operate/keys.md: flask keys generate"]),
    (queued_mail, ["docs/operate/mail.md: flask mail queue"]),
    (processes, ["docs/operate/install.md: .venv/bin/flask db upgrade"]),
    (processes, ["docs/operate/processes.md: celery --app celery_worker worker"]),
    (postgresql_backup, ["docs/operate/backup.md: pg_dump", "docs/operate/backup.md: pg_restore"]),
    (sqlite_backup, ["docs/operate/backup.md: sqlite3"]),
]
NOT_RUN: Final = {
    "README.md: scripts/generate-secrets": "wants Docker; tests/live/test_compose.py runs the services' commands",
    "README.md: ./scripts/test": "runs this suite; CI runs both scripts",
    "docs/operate/install.md: scripts/generate-secrets": "wants Docker, as above",
    "docs/operate/install.md: sudo cp -r": "wants systemd and root; tests/unit/test_systemd.py verifies the units",
    "docs/operate/backup.md: docker compose exec -T postgres pg_dump": "wants Docker; the same without is run",
    "docs/operate/backup.md: docker compose exec -T postgres pg_restore": "wants Docker; the same without is run",
    "docs/benchmarks-soak.md: python -m bench soak": "takes a quarter of an hour",
    "docs/benchmarks-soak.md: python -m bench large": "takes 20 GiB and as many minutes",
}


# Blocks of programs by the tests that run them
RUN_ELSEWHERE: Final = {
    "docs/api/resumable.md: // session.js": "tests/browser/test_resumable.py",
    "docs/api/resumable.md: // send.js": "tests/browser/test_resumable.py",
    "docs/api/resumable.md: // uploader.js": "tests/browser/test_resumable.py",
    'docs/api/resumable.md: """Send a file: python send.py FILE': "tests/live/test_resumable_clients.py",
}


def text_of(name: str) -> str:
    texts = [text for block, text in BLOCKS.items() if block.startswith(name)]
    assert len(texts) == 1 or name.endswith(".md"), name
    return "\n".join(texts)


def test_every_block_of_commands_is_run_or_says_why_not() -> None:
    registered = [name for _, names in RUN for name in names] + list(NOT_RUN)

    new = [block for block in BLOCKS if sum(block.startswith(name) for name in registered) != 1]
    gone = [name for name in registered if not any(block.startswith(name) for block in BLOCKS)]

    assert new == [], "Add these blocks to RUN above, with a function that runs them, or to NOT_RUN with the reason."
    assert gone == [], "No document has these blocks any more: take them out of RUN or NOT_RUN above."


def test_every_block_of_a_program_is_run_by_a_test_that_reads_its_document() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line}" for path in DOCUMENTS for line in _OTHER_BLOCK.findall(path.read_text())
    ]

    assert [block for block in found if not block.startswith(tuple(RUN_ELSEWHERE))] == []
    assert len(found) == len(RUN_ELSEWHERE)
    for block, test in RUN_ELSEWHERE.items():
        assert f'"{block.partition(":")[0]}"' in (ROOT / test).read_text()


@pytest.mark.parametrize(("run", "names"), [pytest.param(*row, id=row[0].__name__) for row in RUN])
def test_the_documents_commands_work_as_they_stand(place: Place, run: Callable[..., None], names: list[str]) -> None:
    run(place, *(text_of(name) for name in names))


def test_every_flask_command_of_the_documents_exists_with_its_options() -> None:
    app = create_cli_app()
    spans = {
        span for path in DOCUMENTS for span in re.findall(r"`(?:\.venv/bin/)?(flask [a-z][^`]*)`", path.read_text())
    }

    wrong = [span for span in sorted(spans) if not _is_known(app.cli, shlex.split(span.replace("|", " "))[1:])]

    assert len(spans) > 20
    assert wrong == []


def _is_known(command: click.Command, words: list[str]) -> bool:
    for word in words:
        if isinstance(command, click.Group):
            # Asked for by name, since a group may import a command on use.
            found = command.get_command(click.Context(command), word)
            if found is None:
                return word.startswith(("…", "["))
            command = found
        elif word.startswith("--") and not any(word.partition("=")[0] in option.opts for option in command.params):
            return word == "--help"
    return True
