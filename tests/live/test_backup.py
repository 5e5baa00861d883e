"""Backup and restore as docs/operations.md tells: the database first, then the objects; the keys apart."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.services import postgres_database, program
from tests.support.stack import Stack, mailing
from vault.encryption.local import generate_master_key


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    folder = tmp_path / "first"
    folder.mkdir()
    with mailing(folder, smtp_port=9) as running:
        running.start_api()
        yield running


def dump(stack: Stack, path: Path) -> None:
    url = stack.env["DATABASE_URL"]
    subprocess.run(
        [program("pg_dump", package="postgresql-client"), "--format=custom", f"--file={path}", url], check=True
    )


def restored(stack: Stack, folder: Path, database_url: str, dump_path: Path, objects: Path, **settings: str) -> Stack:
    """An installation made of a dump and a copy of the objects, with the same keys unless `settings` say otherwise."""
    folder.mkdir()
    shutil.copytree(objects, folder / "objects")
    restore = program("pg_restore", package="postgresql-client")
    subprocess.run([restore, "--no-owner", "--exit-on-error", f"--dbname={database_url}", str(dump_path)], check=True)
    env = {**stack.env, "DATABASE_URL": database_url, "STORAGE_DIR": str(folder / "objects"), "PORT": "", **settings}
    return Stack(folder, env)


def test_a_database_and_objects_that_were_saved_in_this_order_come_back_whole(stack: Stack, tmp_path: Path) -> None:
    anna = stack.sign_up()
    names = [f"{number}.bin" for number in range(3)]
    ids = [anna.post(f"{stack.url}/files", files={"file": (name, name.encode() * 999)}).json()["id"] for name in names]
    dump(stack, tmp_path / "vault.dump")
    # Between the two parts of a backup people go on working.
    anna.post(f"{stack.url}/files", files={"file": ("late.bin", b"uploaded after the database was saved")})
    anna.delete(f"{stack.url}/files/{ids[2]}").raise_for_status()
    stack.reap()
    shutil.copytree(stack.env["STORAGE_DIR"], tmp_path / "objects")

    with postgres_database() as database_url:
        second = restored(stack, tmp_path / "second", database_url, tmp_path / "vault.dump", tmp_path / "objects")
        try:
            second.run("flask", "db", "upgrade")
            second.run("flask", "keys", "check")
            verified = second.run("flask", "files", "verify", "--all", check=False)
            reaped = second.run("flask", "files", "reap")
            second.start_api()
            anna = second.sign_in("anna@example.org")
            contents = [anna.get(f"{second.url}/files/{file_id}/content") for file_id in ids]
        finally:
            second.close()

    assert (verified.returncode, verified.stdout.splitlines()) == (
        1,
        [f"DAMAGED  {ids[2]}  object_missing", "3 files: 2 whole, 1 damaged."],
    )
    assert "1 of 3 objects are known to no row." in reaped.stdout
    assert [answer.content for answer in contents[:2]] == [name.encode() * 999 for name in names[:2]]
    assert (contents[2].status_code, contents[2].json()["code"]) == (500, "integrity_failed")


def test_without_the_key_of_its_time_a_backup_does_not_start(stack: Stack, tmp_path: Path) -> None:
    stack.sign_up().post(f"{stack.url}/files", files={"file": ("a.bin", b"content")}).raise_for_status()
    dump(stack, tmp_path / "vault.dump")
    objects = Path(stack.env["STORAGE_DIR"])

    with postgres_database() as database_url:
        second = restored(
            stack, tmp_path / "second", database_url, tmp_path / "vault.dump", objects, MASTER_KEY=generate_master_key()
        )
        try:
            checked = second.run("flask", "keys", "check", check=False)
            api = second.start("gunicorn", "--config", "gunicorn.conf.py", "wsgi:app", name="api")
            status = api.popen.wait(timeout=60)
        finally:
            second.close()

    assert checked.returncode == 1
    assert "FAILED" in checked.stdout
    assert status != 0
    assert "local:" in api.output
