"""The embedded default on one disk that uploads fill: what frees room, and signing in for it, still work."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from testing.disks import on_small_disks, small_disk
from testing.servers import wait_until
from testing.stack import Client, embedded
from testing.vault import PASSWORD

MIB = 1024 * 1024
CONTENT = os.urandom(3 * MIB)
FULL = (507, "storage_full")


def upload(person: Client, framing: str = "raw") -> tuple[int, str]:
    answer = person.try_upload(CONTENT, framing)
    return answer.status_code, answer.json()["id" if answer.status_code == 201 else "code"]


def use_up(person: Client) -> list[tuple[int, str]]:
    """Upload from several clients at once until each is refused; returns every answer."""

    def until_refused(number: int) -> list[tuple[int, str]]:
        answers: list[tuple[int, str]] = []
        while not answers or answers[-1][0] == 201:
            answers.append(upload(person, ("raw", "chunked")[number % 2]))
        return answers

    with ThreadPoolExecutor(4) as clients:
        return [answer for answers in clients.map(until_refused, range(4)) for answer in answers]


@on_small_disks
def test_signing_in_and_deleting_work_when_uploads_have_filled_the_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 64 * MIB), embedded(disk) as stack:
        stack.start_api()
        person = stack.sign_up()
        first = upload(person)
        at_first = stack.ready("object_store")

        answers = [first, *use_up(person)]
        # A finding is kept for a moment.
        wait_until(
            lambda: stack.ready("object_store")[1:] == ("degraded", "failed"), what="the readiness of a full disk"
        )
        signed_in = stack.sign_in()
        logout = signed_in.post(f"{stack.url}/auth/logout", timeout=120)
        stored = [file_id for status, file_id in answers if status == 201]
        deleted = {person.delete(f"{stack.url}/files/{file_id}", timeout=120).status_code for file_id in stored}
        stack.end_leases()
        stack.reap()

        assert at_first[2] == "ok"
        assert stored
        assert set(answers) - {(201, file_id) for file_id in stored} == {FULL}
        assert logout.status_code == 204
        assert deleted == {204}
        wait_until(lambda: stack.ready("object_store")[2] == "ok", what="the readiness of the disk that was emptied")
        assert upload(person)[0] == 201
        assert stack.accounts_agree()
        assert stack.container.objects.store.unfinished() == 0


@on_small_disks
def test_a_disk_that_something_else_fills_refuses_uploads_unread_and_strangers_rows(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 24 * MIB), embedded(disk) as stack:
        stack.start_api()
        person = stack.sign_up()
        ballast = disk / "something-else"
        with ballast.open("wb") as file:
            facts = os.statvfs(disk)
            os.posix_fallocate(file.fileno(), 0, facts.f_bavail * facts.f_frsize - 3 * MIB)

        # Without a body: an answer can only come if none is waited for.
        refused = requests.Request(
            "POST", f"{stack.url}/files", params={"name": "a"}, headers={**person.headers, "Content-Length": "1000000"}
        ).prepare()
        refused.headers["Content-Length"] = "1000000"
        answer = requests.Session().send(refused, timeout=120)
        stranger = requests.post(
            f"{stack.url}/auth/register", json={"email": "bert@example.org", "password": PASSWORD}, timeout=120
        )

        assert (answer.status_code, answer.json()["code"]) == FULL
        assert (stranger.status_code, stranger.json()["code"]) == FULL
        assert stack.sign_in().get(f"{stack.url}/files", timeout=120).status_code == 200
