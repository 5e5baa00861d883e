"""A store that is not mounted, or only for reading, is a store that fails: it is not one that has lost its objects."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from testing.disks import on_small_disks, small_disk
from testing.servers import wait_until
from testing.stack import Stack, embedded, production
from vault.core.principal import Principal
from vault.keys.verifying import VerifyReport

MIB = 1024 * 1024


def store_folder(stack: Stack) -> Path:
    return stack.s3.data_folder / stack.env["S3_BUCKET_NAME"] if stack.s3 else Path(stack.env["STORAGE_DIR"])


@contextmanager
def unmounted(folder: Path) -> Iterator[None]:
    """What is seen where nothing is mounted: an empty folder."""
    away = folder.with_name("mounted-elsewhere")
    folder.rename(away)
    folder.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(folder)
        away.rename(folder)


def wait_for_store(stack: Stack, state: str) -> None:
    """Wait until readiness calls the store so. Beat is not there, so that it says degraded in any case."""
    wait_until(lambda: stack.ready("object_store") == (200, "degraded", state), seconds=40, what=f"the store: {state}")


def damage_told(stack: Stack) -> int:
    return int(stack.sql("SELECT count(*) FROM audit_events WHERE action = 'file.integrity_failed'")[0][0])


@pytest.mark.parametrize("kind", [pytest.param(embedded, id="directory"), pytest.param(production, id="s3")])
def test_a_store_that_is_not_mounted_has_lost_nothing(kind: type, tmp_path: Path) -> None:
    with kind(tmp_path) as stack:
        stack.start_api()
        person = stack.sign_up()
        small, large = (person.upload(content)["id"] for content in (b"small", bytes(9 * MIB)))
        wait_for_store(stack, "ok")

        with unmounted(store_folder(stack)):
            wait_for_store(stack, "failed")
            answers = [person.get(f"{stack.url}/files/{file_id}/content") for file_id in (small, large)]
            ranged = person.get(f"{stack.url}/files/{large}/content", headers={"Range": "bytes=0-9"})
            verified = stack.run("flask", "files", "verify", "--all", "--json", check=False)
            if not stack.s3:
                refused = [person.post(f"{stack.url}/files?name=x", data=b"x") for _ in range(4)]
                assert {answer.status_code for answer in refused} <= {502, 503}
                # It would vanish when the disk is mounted.
                assert list(store_folder(stack).iterdir()) == []

        findings = [json.loads(line) for line in verified.stdout.splitlines()]
        assert [(a.status_code, a.json()["code"]) for a in (*answers, ranged)] == [(502, "storage_unavailable")] * 3
        assert verified.returncode == 1
        assert {finding.get("damaged") for finding in findings} <= {False}
        assert findings[-1]["unchecked"] == 2
        assert damage_told(stack) == 0
        wait_for_store(stack, "ok")
        assert person.get(f"{stack.url}/files/{small}/content").content == b"small"
        assert stack.container.keys.verifier.verify_files(Principal(), sample=None) == VerifyReport(checked=2)


@on_small_disks
def test_a_store_that_can_only_be_read_is_not_well_and_serves_what_it_has(tmp_path: Path) -> None:
    disk = tmp_path / "store"
    with small_disk(disk, 24 * MIB), embedded(tmp_path) as stack:
        stack.start_api()
        person = stack.sign_up()
        file_id = person.upload(b"small")["id"]
        wait_for_store(stack, "ok")

        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)

        wait_for_store(stack, "failed")
        refused = person.post(f"{stack.url}/files?name=x", data=b"x")
        assert (refused.status_code, refused.json()["code"]) == (502, "storage_unavailable")
        assert person.get(f"{stack.url}/files/{file_id}/content").content == b"small"
        assert damage_told(stack) == 0
