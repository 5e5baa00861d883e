"""Faults around uploads on PostgreSQL and S3: clients are told the truth, and what is left agrees to the byte.

Relays stand between the API and its servers, and fail when told to. The tests look on from beside them, straight at
the servers.
"""

import itertools
import math
import os
import random
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
import sqlalchemy as sa

from testing.disks import fill, on_small_disks, small_disk
from testing.proxy import Act, Proxy, http_answer
from testing.servers import wait_until
from testing.stack import Client, Process, Stack, embedded, production
from testing.vault import PASSWORD
from vault.admin.service import UserChanges
from vault.core.addresses import parse_address
from vault.core.principal import Principal
from vault.objects.models import ObjectState, SealedObject
from vault.storage import object_key

MIB = 1024 * 1024
SMALL = os.urandom(100_000)
# Of two and of three parts.
MEDIUM, LARGE = os.urandom(9 * MIB), os.urandom(17 * MIB)
FRAMINGS = ("raw", "form", "chunked")

# The first lines of requests to S3, and statements.
PUT_OBJECT = rb"^PUT [^ ?]+ HTTP"
CREATE = rb"^POST [^ ?]+\?uploads"
SECOND_PART = rb"^PUT [^ ]+[?&]partNumber=2\b"
THIRD_PART = rb"^PUT [^ ]+[?&]partNumber=3\b"
COMPLETE = rb"^POST [^ ?]+\?uploadId="
RESERVE = rb"INSERT INTO objects"
PUBLISH = rb"UPDATE objects SET entry_id="
COMMIT = rb"COMMIT"

STORED = (201, "stored")
BUSY = (503, "busy")
STORAGE_FULL = (507, "storage_full")
STORAGE_UNAVAILABLE = (502, "storage_unavailable")
DATABASE_UNAVAILABLE = (503, "database_unavailable")


def _refusal(status: int, code: str) -> bytes:
    return http_answer(status, f"<Error><Code>{code}</Code></Error>")


@dataclass
class Sent:
    """An upload that was tried. `answer` is None if the connection ended without one."""

    name: str
    content: bytes
    answer: requests.Response | None

    @property
    def outcome(self) -> tuple[int, str]:
        assert self.answer is not None
        return self.answer.status_code, self.answer.json().get("code", "stored")


@dataclass
class Site:
    """The service, the relays to its servers, and an account."""

    stack: Stack
    person: Client
    relays: tuple[Proxy, ...] = ()
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def database(self) -> Proxy:
        return self.relays[0]

    @property
    def s3(self) -> Proxy:
        return self.relays[1]

    def restore(self) -> None:
        for relay in self.relays:
            relay.restore()

    def send(self, content: bytes, framing: str = "raw", *, person: Client | None = None, **kwargs: Any) -> Sent:
        name = f"{next(self.numbers)}.bin"
        try:
            return Sent(name, content, (person or self.person).try_upload(content, framing, name=name, **kwargs))
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
            # Nothing came, or the head of an answer without its body.
            return Sent(name, content, None)

    def send_at_once(self, *uploads: tuple[bytes, str]) -> list[Sent]:
        with ThreadPoolExecutor(len(uploads)) as threads:
            return list(threads.map(lambda upload: self.send(*upload), uploads))

    def files(self) -> dict[str, str]:
        """The ids of the person's files by their names."""
        page = self.person.get(f"{self.stack.url}/files", params={"limit": 200}).json()
        assert page["next_cursor"] is None
        return {item["name"]: item["id"] for item in page["items"]}

    def content(self, file_id: str) -> bytes:
        answer = self.person.get(f"{self.stack.url}/files/{file_id}/content")
        assert answer.status_code == 200, answer.text
        return answer.content


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with (
        production(tmp_path_factory.mktemp("faults")) as stack,
        Proxy(stack.env["DATABASE_URL"]) as database,
        Proxy(stack.env["S3_ENDPOINT_URL"]) as s3,
    ):
        stack.env |= {"DATABASE_URL": f"{database.url}?sslmode=disable", "S3_ENDPOINT_URL": s3.url}
        stack.start_api()
        yield Site(stack, stack.sign_up(), (database, s3))


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    """The service with everything whole, before and after."""
    yield running
    running.restore()


def assert_all_agrees(site: Site, *uploads: Sent, unknown: bool = False) -> None:
    """Once all faults are over: what was acknowledged can be read, what was refused is not there, nothing is left over.

    `unknown` allows a file also where there was an error.
    """
    site.restore()
    stack = site.stack
    stack.reap_all()

    with stack.container.core.sessions.begin() as session:
        rows = session.scalars(sa.select(SealedObject)).all()
    assert {row.state for row in rows} <= {ObjectState.READY}
    assert stack.objects() == sorted(object_key(row.object_id) for row in rows)
    assert stack.container.objects.store.unfinished() == 0
    assert stack.accounts_agree()
    found = site.files()
    for upload in uploads:
        if upload.answer is not None and not unknown:
            assert (upload.name in found) == (upload.outcome == STORED)
        if upload.name in found:
            assert site.content(found[upload.name]) == upload.content


# The object store


def test_the_first_uploads_of_an_installation_all_succeed_at_once(site: Site) -> None:
    uploads = site.send_at_once((LARGE, "raw"), *((b"", framing) for framing in FRAMINGS for _ in range(2)))

    assert {upload.outcome for upload in uploads} == {STORED}
    assert_all_agrees(site, *uploads)


@pytest.mark.parametrize(
    ("moment", "framing"),
    [("before", "form"), (SECOND_PART, "chunked"), (COMPLETE, "raw")],
    ids=["before", "middle", "end"],
)
def test_a_store_that_goes_away_is_a_502_and_nothing_stays(site: Site, moment: str | bytes, framing: str) -> None:
    if isinstance(moment, bytes):
        site.s3.when(moment, act=Act.CUT, then=site.s3.refuse)
    else:
        site.s3.refuse()

    upload = site.send(LARGE, framing)

    assert upload.outcome == STORAGE_UNAVAILABLE
    assert upload.answer.headers["Retry-After"] == "5"
    assert upload.name not in site.files()
    assert_all_agrees(site, upload)


@pytest.mark.parametrize(
    ("act", "requests_to_s3"),
    [
        pytest.param(_refusal(500, "InternalError"), (PUT_OBJECT, CREATE, SECOND_PART, COMPLETE), id="500"),
        pytest.param(_refusal(503, "SlowDown"), (PUT_OBJECT, CREATE, SECOND_PART, COMPLETE), id="503"),
        pytest.param(Act.CUT, (PUT_OBJECT, CREATE, SECOND_PART), id="connection lost before"),
        pytest.param(Act.LOSE_ANSWER, (PUT_OBJECT, CREATE, SECOND_PART), id="connection lost after"),
        pytest.param(Act.HANG, (PUT_OBJECT, SECOND_PART), id="silence", marks=pytest.mark.slow),
    ],
)
def test_a_store_that_fails_at_each_request_once_is_asked_again(
    site: Site, act: Act | bytes, requests_to_s3: tuple[bytes, ...]
) -> None:
    faults = [site.s3.when(request, act=act) for request in requests_to_s3]

    uploads = site.send_at_once((SMALL, "form"), (SMALL, "raw"), (MEDIUM, "chunked"), (LARGE, "raw"))

    assert {upload.outcome for upload in uploads} == {STORED}
    assert [fault.happened for fault in faults] == [1] * len(faults)
    assert_all_agrees(site, *uploads)


@pytest.mark.parametrize(
    ("status", "code", "expected", "retry_after"),
    [
        (500, "InternalError", STORAGE_UNAVAILABLE, "5"),
        (503, "SlowDown", STORAGE_UNAVAILABLE, "5"),
        (507, "XMinioStorageFull", STORAGE_FULL, None),
    ],
    ids=["500", "503", "full"],
)
def test_a_store_that_refuses_for_ever_is_told_and_nothing_stays(
    site: Site, status: int, code: str, expected: tuple[int, str], retry_after: str | None
) -> None:
    for request in (PUT_OBJECT, THIRD_PART, COMPLETE):
        site.s3.when(request, act=_refusal(status, code), times=math.inf)

    uploads = site.send_at_once((SMALL, "raw"), (MEDIUM, "form"), (LARGE, "chunked"))

    assert {upload.outcome for upload in uploads} == {expected}
    assert {upload.answer.headers.get("Retry-After") for upload in uploads} == {retry_after}
    assert site.stack.container.objects.store.unfinished() == 0
    assert_all_agrees(site, *uploads)
    assert site.send(SMALL).outcome == STORED


def test_an_object_that_was_completed_unseen_does_not_stay_where_the_upload_failed(site: Site) -> None:
    lost = site.s3.when(COMPLETE, act=Act.LOSE_ANSWER, then=site.s3.refuse)

    upload = site.send(MEDIUM)

    assert lost.happened == 1
    assert upload.outcome == STORAGE_UNAVAILABLE
    assert len(site.stack.objects()) == len(site.files()) + 1
    assert_all_agrees(site, upload)


@pytest.mark.parametrize(
    ("repeated", "expected"),
    [
        # What AWS answers to a completion that it has done already, and what others do.
        (http_answer(200, "<CompleteMultipartUploadResult/>"), STORED),
        (_refusal(404, "NoSuchUpload"), STORAGE_UNAVAILABLE),
    ],
    ids=["again", "unknown"],
)
def test_an_object_that_was_completed_unseen_is_stored_if_the_store_says_so(
    site: Site, repeated: bytes, expected: tuple[int, str]
) -> None:
    site.s3.when(COMPLETE, act=Act.LOSE_ANSWER)
    again = site.s3.when(COMPLETE, act=repeated)

    upload = site.send(MEDIUM)

    assert again.happened == 1
    assert upload.outcome == expected
    assert_all_agrees(site, upload)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("moment", ["before", "middle and end"])
def test_a_store_that_hangs_is_a_502_in_the_end_and_nothing_stays(site: Site, moment: str) -> None:
    if moment == "before":
        site.s3.hang()
    else:
        for request in (PUT_OBJECT, THIRD_PART, COMPLETE):
            site.s3.when(request, act=Act.HANG, times=math.inf)

    uploads = site.send_at_once((SMALL, "raw"), (MEDIUM, "form"), (LARGE, "chunked"))

    # Of the first uploads of a process one asks the store, and the others do not wait for it for long.
    assert {upload.outcome for upload in uploads} <= {STORAGE_UNAVAILABLE, BUSY}
    assert_all_agrees(site, *uploads)


# The database


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_database_that_restarts_between_the_two_commits_is_reached_again(site: Site, framing: str) -> None:
    # One upload alone: another might be in a transaction at that moment, and would rightly be refused.
    cut = site.s3.when(SECOND_PART, act=Act.PASS, then=site.database.cut)

    upload = site.send(MEDIUM, framing)

    assert cut.happened == 1
    assert upload.outcome == STORED
    assert_all_agrees(site, upload)


def test_a_database_that_is_away_only_while_bytes_move_is_not_missed(site: Site) -> None:
    site.s3.when(CREATE, act=Act.PASS, then=site.database.refuse)
    site.s3.when(COMPLETE, act=Act.PASS, then=site.database.restore)

    upload = site.send(LARGE)

    assert upload.outcome == STORED
    assert_all_agrees(site, upload)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_database_that_goes_away_between_the_two_commits_is_a_503_and_nothing_stays(site: Site, framing: str) -> None:
    site.s3.when(SECOND_PART, act=Act.PASS, then=site.database.refuse)

    upload = site.send(LARGE, framing)

    assert upload.outcome == DATABASE_UNAVAILABLE
    assert upload.answer.headers["Retry-After"] == "5"
    assert site.stack.states().count("pending") == 1
    assert_all_agrees(site, upload)


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize(
    ("statements", "act", "expected"),
    [
        ((PUBLISH,), Act.CUT, DATABASE_UNAVAILABLE),
        ((PUBLISH, COMMIT), Act.CUT, DATABASE_UNAVAILABLE),
        ((PUBLISH, COMMIT), Act.LOSE_ANSWER, STORED),
    ],
    ids=["update lost", "commit lost", "answer lost"],
)
def test_a_publication_is_told_as_it_went_when_the_connection_is_lost(
    site: Site, statements: tuple[bytes, ...], act: Act, expected: tuple[int, str], framing: str
) -> None:
    lost = site.database.when(*statements, act=act)

    upload = site.send(SMALL, framing)

    assert lost.happened == 1
    assert upload.outcome == expected
    assert "pending" not in site.stack.states()
    assert_all_agrees(site, upload)


@pytest.mark.parametrize(
    ("act", "expected"),
    [(Act.CUT, DATABASE_UNAVAILABLE), (Act.LOSE_ANSWER, STORED)],
    ids=["commit lost", "answer lost"],
)
def test_a_publication_is_told_as_it_went_when_the_database_is_back_soon(
    site: Site, act: Act, expected: tuple[int, str]
) -> None:
    back = threading.Timer(1, site.database.restore)

    def go_away() -> None:
        site.database.refuse()
        back.start()

    site.database.when(PUBLISH, COMMIT, act=act, then=go_away)

    upload = site.send(SMALL)

    back.join()
    assert upload.outcome == expected
    assert_all_agrees(site, upload)


@pytest.mark.parametrize(
    "act",
    [pytest.param(Act.CUT, id="commit lost", marks=pytest.mark.slow), pytest.param(Act.LOSE_ANSWER, id="answer lost")],
)
def test_a_publication_is_told_to_be_uncertain_when_the_database_stays_away(site: Site, act: Act) -> None:
    site.database.when(PUBLISH, COMMIT, act=act, then=site.database.refuse)

    upload = site.send(SMALL)

    assert upload.outcome == DATABASE_UNAVAILABLE
    assert "may have been stored" in upload.answer.json()["detail"]
    assert_all_agrees(site, upload, unknown=True)
    assert (upload.name in site.files()) == (act is Act.LOSE_ANSWER)


def test_a_publication_is_answered_without_asking_the_database_again(site: Site) -> None:
    site.database.when(PUBLISH, COMMIT, rb"", act=Act.CUT, then=site.database.refuse)

    upload = site.send(SMALL)

    assert upload.outcome == STORED
    assert_all_agrees(site, upload)


@pytest.mark.parametrize("act", [Act.CUT, Act.LOSE_ANSWER], ids=["commit lost", "answer lost"])
def test_a_reservation_of_unknown_outcome_is_a_503_and_nothing_stays(site: Site, act: Act) -> None:
    lost = site.database.when(RESERVE, COMMIT, act=act)

    upload = site.send(SMALL)

    assert lost.happened == 1
    assert upload.outcome == DATABASE_UNAVAILABLE
    assert_all_agrees(site, upload)


# Owners


def delete(owner: Client, _stack: Stack, _email: str) -> None:
    owner.delete(f"{owner.url}/auth/me", json={"password": PASSWORD}).raise_for_status()


def disable(_owner: Client, stack: Stack, email: str) -> None:
    administration = stack.container.admin.administration
    administration.change(Principal(), administration.find(parse_address(email)).id, UserChanges(disabled=True))


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("end", [delete, disable])
def test_an_upload_whose_owner_is_deleted_or_disabled_meanwhile_is_a_409_and_leaves_nothing(
    site: Site, end: Callable[[Client, Stack, str], None], framing: str
) -> None:
    email, before = f"{end.__name__}-{framing}@example.org", site.stack.objects()
    owner = site.stack.sign_up(email)
    stored, with_stored = site.send(SMALL, person=owner), site.stack.objects()
    ended = site.s3.when(SECOND_PART, act=Act.PASS, then=lambda: end(owner, site.stack, email))

    upload = site.send(MEDIUM, framing, person=owner)

    assert stored.outcome == STORED
    assert ended.happened == 1
    assert upload.outcome == (409, "upload_lost")
    assert owner.get(f"{site.stack.url}/files").status_code == 401
    assert_all_agrees(site)
    assert site.stack.objects() == (before if end is delete else with_stored)


# Death


@pytest.mark.parametrize(
    "whole", [pytest.param(False, id="workers"), pytest.param(True, id="group", marks=pytest.mark.slow)]
)
def test_an_api_killed_at_random_points_of_uploads_loses_nothing_that_it_acknowledged(site: Site, whole: bool) -> None:
    dice, acknowledged = random.Random(20261125), set()
    for _ in range(10):
        api, open_then = site.stack.processes[-1], set()

        def kill(api: Process = api, open_then: set[object] = open_then) -> None:
            for relay in site.relays:
                open_then.update(relay.connections)
            if whole:
                site.stack.processes.remove(api)
                api.kill()
            else:
                # As the kernel does when memory runs out: the master stays and starts others.
                for pid in api.children:
                    os.kill(pid, signal.SIGKILL)

        relay, messages = dice.choice([(site.database, 54), (site.s3, 275)])
        death = relay.when(rb"", act=Act.PASS, skip=dice.randrange(messages), then=kill)
        contents = [LARGE, *dice.choices([b"", SMALL, MEDIUM], k=3)]

        uploads = site.send_at_once(*((content, dice.choice(FRAMINGS)) for content in contents))

        assert death.happened == 1
        # The servers do what they were asked for before the test looks at it.
        wait_until(
            lambda open_then=open_then: not any(relay.connections & open_then for relay in site.relays),
            # A busy disk lets a commit wait.
            seconds=60,
            what="the end of what was under way",
        )
        if whole:
            site.stack.start_api()
        answered = [upload for upload in uploads if upload.answer is not None]
        assert {upload.outcome for upload in answered} <= {STORED}
        assert_all_agrees(site, *uploads)
        acknowledged |= {upload.name for upload in answered}
    assert acknowledged <= site.files().keys()


# Full disks


def use_up_and_make_room(stack: Stack, disk: Path, refusal: tuple[int, str]) -> None:
    """Upload to a store on a disk of 24 MiB until there is no room, then until there is room again."""
    stack.start_api()
    site = Site(stack, stack.sign_up())
    first = site.send(LARGE)

    too_much = [site.send(LARGE, framing) for framing in FRAMINGS]
    unfinished = stack.container.objects.store.unfinished()
    ballast = fill(disk)
    nothing_left = [site.send(SMALL, framing) for framing in FRAMINGS]

    assert first.outcome == STORED
    assert {upload.outcome for upload in too_much + nothing_left} == {refusal}
    assert unfinished == 0
    assert_all_agrees(site, first, *too_much, *nothing_left)
    deleted = site.person.delete(f"{stack.url}/files/{site.files()[first.name]}")
    assert deleted.status_code == 204
    assert_all_agrees(site)
    ballast.unlink()
    again = site.send(LARGE)
    assert again.outcome == STORED
    assert_all_agrees(site, again)


@on_small_disks
def test_a_directory_on_a_full_disk_is_a_507_until_there_is_room_again(tmp_path: Path) -> None:
    disk = tmp_path / "store"
    with small_disk(disk, 24 * MIB), embedded(tmp_path) as stack:
        use_up_and_make_room(stack, disk, STORAGE_FULL)


@pytest.mark.slow
@on_small_disks
def test_an_s3_on_a_full_disk_that_only_says_500_is_a_502_until_there_is_room_again(tmp_path: Path) -> None:
    with production(tmp_path) as stack:
        disk = stack.s3.data_folder / stack.env["S3_BUCKET_NAME"]
        with small_disk(disk, 24 * MIB):
            use_up_and_make_room(stack, disk, STORAGE_UNAVAILABLE)


@pytest.mark.slow
@on_small_disks
def test_a_database_on_a_full_disk_is_a_507_until_there_is_room_again(tmp_path: Path) -> None:
    database = tmp_path / "database" / "vault-test.db"
    with small_disk(database.parent, 24 * MIB), embedded(tmp_path, DATABASE_URL=f"sqlite:///{database}") as stack:
        stack.start_api()
        site = Site(stack, stack.sign_up())
        kept = site.send(SMALL)

        def become_full() -> None:
            wait_until(lambda: "pending" in stack.states(), what="the reservation")
            # Or what was written before would leave room in the log.
            with closing(sqlite3.connect(database)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            fill(database.parent)

        amid = site.send(MEDIUM, "chunked", meanwhile=become_full)
        from_the_start = [site.send(SMALL, framing) for framing in FRAMINGS]
        listed = list(site.files())

        assert {upload.outcome for upload in (amid, *from_the_start)} == {STORAGE_FULL}
        assert listed == [kept.name]
        (database.parent / "ballast").unlink()
        again = site.send(SMALL)
        assert again.outcome == STORED
        assert_all_agrees(site, kept, amid, *from_the_start, again)


def test_the_logs_hold_no_unexpected_error_and_no_secret(site: Site) -> None:
    keys = [key.rpartition("/")[2] for key in site.stack.objects()]

    assert (
        site.stack.logged(["unexpected_error", PASSWORD, site.person.token, "example.org", *site.files(), *keys]) == []
    )
