"""The audit log as it is written: every action of the list leaves the documented events, and none happens without."""

import os
import pwd
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from testing.passwords import NEW_PASSWORD, PASSWORD, WRONG_PASSWORD, meanwhile
from testing.tus import FIRST_PART, SMALL_PART, Upload
from testing.vault import AUTH, FILES, Person, Vault, claims_of
from vault.audit.models import Action, AuditEvent
from vault.auth.erasing import Eraser
from vault.auth.models import PasswordAttempts
from vault.background.broker import (
    TASK_ENFORCE_RETENTION,
    TASK_EXPIRE_TRASH,
    TASK_REAP_FILES,
    TASK_SWEEP_ACCOUNTS,
    TASK_TEND_UPLOADS,
    TASK_TRIM_VERSIONS,
)
from vault.objects.installation import Epoch
from vault.objects.models import RetiredKey
from vault.resumable.models import ResumableUpload
from vault.settings.config import ROOT
from vault.storage import EPOCH_KEY

pytestmark = [pytest.mark.usefixtures("no_secret_stays"), pytest.mark.uncounted]

ADMIN = "/api/v1/admin"
FOLDERS, ENTRIES, TRASH = "/api/v1/folders", "/api/v1/entries", "/api/v1/trash"
HOME, AGENT = "192.0.2.10", "walk/1.0"
OPERATOR = {"origin": "cli", "os_user": pwd.getpwuid(os.geteuid()).pw_name}
WORKER = {"origin": "worker"}
ORPHAN = "objects/00/00112233-4455-6677-8899-aabbccddeeff"
# What any event may have in its details; docs/audit.md tells it before the list.
COMMON = {"trace_id", "origin", "os_user", "count", "reasons", "first_at", "last_at"}


@dataclass(frozen=True)
class Who:
    """An account, what it acts as, and what it is as a target."""

    person: Person
    account: tuple[uuid.UUID, str]
    session_id: uuid.UUID

    @property
    def target(self) -> tuple[str, uuid.UUID]:
        return "user", self.account[0]


@dataclass(frozen=True)
class Expected:
    """An event. `counted` ones are of whoever was not signed in, and say how often each reason came."""

    action: Action
    account: tuple[uuid.UUID, str] | None = None
    target: tuple[str, uuid.UUID] | None = None
    session_id: uuid.UUID | None = None
    outcome: str = "ok"
    reason: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    counted: Mapping[str, int] | None = None
    origin: Mapping[str, str] | None = None


class Walk:
    """Does one thing after another, and compares what each has left in the log."""

    def __init__(self, vault: Vault) -> None:
        self.vault = vault
        # By action: outcomes with reasons, and names of details.
        self.observed: dict[str, tuple[set[tuple[str, str | None]], set[str]]] = {}
        self._seen: set[uuid.UUID] = set()
        self._number = 0
        self._next()

    def member(self, email: str, **columns: Any) -> Who:
        person = self.vault.member(email, **columns)
        return Who(person, (self.vault.user(email).id, email), session_of(person.access_token))

    def post(self, path: str, who: Who | None = None, **fields: Any) -> Any:
        return (who.person if who else self.vault.client).post(f"{AUTH}/{path}", json=fields)

    def left(self, *expected: Expected) -> None:
        """Check that exactly these events have come since this was last asked."""
        found = sorted(self._new_events(), key=_order)
        assert [self._facts(event) for event in found] == sorted(expected, key=_order)
        for event in found:
            outcomes, details = self.observed.setdefault(event.action, (set(), set()))
            outcomes.update((event.outcome, reason) for reason in event.details.get("reasons", [event.reason]))
            details.update(set(event.details) - COMMON)
        self._number += 1
        self._next()

    def refused(self, action: Action, reason: str, who: Who | None = None, **details: Any) -> Expected:
        """The event of one counted failure."""
        account, target = (who.account, who.target) if who else (None, None)
        return Expected(action, account, target, None, "failed", reason, details, {reason: 1})

    def pass_over(self) -> list[AuditEvent]:
        """What has come since, which is not compared."""
        return self._new_events()

    def _next(self) -> None:
        self.vault.client.environ_base.update(
            REMOTE_ADDR=HOME, HTTP_USER_AGENT=AGENT, HTTP_X_REQUEST_ID=f"walk-{self._number}"
        )

    def _new_events(self) -> list[AuditEvent]:
        container = self.vault.container
        container.audit.settling.settle(began_by=self.vault.clock())
        with container.core.sessions.begin() as session:
            events = [event for event in session.scalars(sa.select(AuditEvent)) if event.id not in self._seen]
        self._seen.update(event.id for event in events)
        return events

    def _facts(self, event: AuditEvent) -> Expected:
        """The event as it is expected, once what all have in common is found to be so."""
        origin = {name: event.details[name] for name in ("origin", "os_user") if name in event.details}
        where = (None, None, None) if origin else (HOME, AGENT, f"walk-{self._number}")
        assert (event.ip, event.user_agent, event.request_id) == where
        assert bool(origin) != bool(re.fullmatch("[0-9a-f]{32}", event.details.get("trace_id", "")))
        assert event.at == self.vault.clock()
        counted = event.details.get("reasons")
        if counted is not None:
            assert event.details["count"] == sum(counted.values())
            assert event.details["first_at"] == event.details["last_at"] == event.at.isoformat()
        return Expected(
            Action(event.action),
            (event.actor_id, event.actor_email) if event.actor_id and event.actor_email else None,
            (event.target_type, event.target_id) if event.target_type and event.target_id else None,
            event.session_id,
            event.outcome,
            event.reason,
            {name: value for name, value in event.details.items() if name not in COMMON},
            counted,
            origin or None,
        )


def _order(event: AuditEvent | Expected) -> tuple[str, str, str, str]:
    return event.action, event.outcome, str(event.reason), str(sorted(event.details.items()))


def session_of(access_token: str) -> uuid.UUID:
    return uuid.UUID(claims_of(access_token)["sid"])


def documented() -> dict[str, tuple[set[tuple[str, str | None]], set[str]]]:
    """The list in docs/audit.md: by action, its outcomes with their reasons, and the names in its details."""
    found = {}
    for line in (ROOT / "docs" / "audit.md").read_text().splitlines():
        row = re.fullmatch(r"\| `([a-z_.]+)` \|[^|]*\|[^|]*\|[^|]*\|([^|]*)\|([^|]*)\|", line)
        if row is None or "." not in row[1]:
            continue
        outcomes: set[tuple[str, str | None]] = set()
        for part in row[2].split(";"):
            outcome, _, reasons = part.strip().partition(":")
            outcomes.update((outcome, reason) for reason in re.findall("`([a-z_]+)`", reasons) or [None])
        found[row[1]] = outcomes, set(re.findall("`([a-z_]+)`", row[3]))
    return found


def test_every_action_leaves_exactly_the_events_that_are_documented(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(AUTH_LIMIT_PER_IP="1000", AUTH_LIMIT_PER_ADDRESS="1000")
    walk = Walk(vault)

    for part in (
        accounts_come,
        logins,
        lockouts,
        passwords_are_reset,
        accounts_change,
        accounts_go,
        sessions_end,
        files_come_and_go,
        uploads_end,
        trees_change,
        administrators_act,
        operators_act,
        tasks_run,
    ):
        part(walk)

    table = documented()
    assert set(table) == set(Action)
    # Of a damaged file the log says what is wrong, which is no closed list.
    walk.observed[Action.FILE_INTEGRITY_FAILED][0].clear()
    walk.observed[Action.FILE_INTEGRITY_FAILED][0].add(("failed", None))
    # A migration leaves it: tests/functional/test_migrations.py.
    walk.observed[Action.FILES_RENAMED] = ({("ok", None)}, {"files"})
    assert walk.observed == table


def accounts_come(walk: Walk) -> None:
    vault, email = walk.vault, "new@example.org"
    walk.post("register", email=email, password=PASSWORD)
    user_id = vault.user(email).id
    registered = Expected(Action.USER_REGISTERED, (user_id, email), ("user", user_id))
    walk.left(registered)

    for _ in range(2):
        walk.post("register", email=email, password=NEW_PASSWORD)
        walk.left(registered)
    walk.post("register", email=email, password=PASSWORD)
    too_often = {"outcome": "failed", "reason": "too_often", "counted": {"too_often": 1}}
    walk.left(Expected(Action.USER_REGISTERED, (user_id, email), ("user", user_id), **too_often))

    walk.post("verify-email", token="nothing", password=NEW_PASSWORD)
    walk.left(walk.refused(Action.EMAIL_VERIFIED, "token"))
    token = vault.mailed_token(email)
    link_refused(walk, Action.EMAIL_VERIFIED, token, (user_id, email))
    walk.post("verify-email", token=token, password=NEW_PASSWORD)
    walk.left(Expected(Action.EMAIL_VERIFIED, (user_id, email), ("user", user_id)))

    walk.post("register", email=email, password=PASSWORD)
    known = {"outcome": "failed", "reason": "known", "counted": {"known": 1}}
    walk.left(Expected(Action.USER_REGISTERED, (user_id, email), ("user", user_id), **known))


def logins(walk: Walk) -> None:
    vault, who = walk.vault, walk.member("login@example.org")

    def login(password: str = PASSWORD, email: str = who.person.email) -> Any:
        return walk.post("login", email=email, password=password)

    answer = login()
    walk.left(Expected(Action.LOGIN, who.account, who.target, session_of(answer.json["access_token"])))
    login(WRONG_PASSWORD)
    walk.left(walk.refused(Action.LOGIN, "password", who))
    login(email="nobody@example.org")
    walk.left(walk.refused(Action.LOGIN, "unknown"))
    vault.change_user(who.person.email, disabled_at=vault.clock())
    login()
    walk.left(walk.refused(Action.LOGIN, "disabled", who))
    vault.change_user(who.person.email, disabled_at=None, email_verified_at=None)
    login()
    walk.left(walk.refused(Action.LOGIN, "unverified", who))
    vault.change_user(who.person.email, email_verified_at=vault.clock())
    with meanwhile(lambda: vault.change_user(who.person.email, password_version=7)):
        login()
    walk.left(walk.refused(Action.LOGIN, "changed", who))


def lockouts(walk: Walk) -> None:
    who = walk.member("lockout@example.org")

    for email, known, wrong, too_early in (
        (who.person.email, who, "password", "delayed"),
        ("nobody.else@example.org", None, "unknown", "unknown"),
    ):
        for _ in range(5):
            walk.post("login", email=email, password=WRONG_PASSWORD)
        failed = walk.refused(Action.LOGIN, wrong, known)
        walk.left(replace(failed, counted={wrong: 5}), walk.refused(Action.LOCKOUT, "network", known, delay_seconds=1))
        walk.post("login", email=email, password=PASSWORD)
        walk.left(walk.refused(Action.LOGIN, too_early, known))

    many = walk.member("many@example.org")
    walk.post("login", email=many.person.email, password=WRONG_PASSWORD)
    walk.left(walk.refused(Action.LOGIN, "password", many))
    walk.vault.execute(sa.text("UPDATE password_attempts SET failures = 49 WHERE length(network_key) = 0"))
    walk.post("login", email=many.person.email, password=WRONG_PASSWORD)
    walk.left(
        walk.refused(Action.LOGIN, "password", many), walk.refused(Action.LOCKOUT, "everywhere", many, delay_seconds=1)
    )


def passwords_are_reset(walk: Walk) -> None:
    vault, who = walk.vault, walk.member("reset@example.org")

    walk.post("forgot-password", email="nobody@example.org")
    walk.left(walk.refused(Action.PASSWORD_RESET_REQUESTED, "unknown"))
    for _ in range(3):
        walk.post("forgot-password", email=who.person.email)
        walk.left(Expected(Action.PASSWORD_RESET_REQUESTED, who.account, who.target))
    walk.post("forgot-password", email=who.person.email)
    walk.left(walk.refused(Action.PASSWORD_RESET_REQUESTED, "too_often", who))

    walk.post("reset-password", token="nothing", new_password=NEW_PASSWORD)
    walk.left(walk.refused(Action.PASSWORD_RESET, "token"))
    vault.change_user(who.person.email, email_verified_at=None)
    walk.post("reset-password", token=vault.mailed_token(who.person.email), new_password=NEW_PASSWORD)
    walk.left(
        Expected(Action.PASSWORD_RESET, who.account, who.target, details={"sessions": 1}),
        Expected(Action.EMAIL_VERIFIED, who.account, who.target),
    )


def accounts_change(walk: Walk) -> None:
    vault = walk.vault
    who = walk.member("change@example.org")
    passwords = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    walk.post("change-password", who, **passwords)
    walk.left(Expected(Action.PASSWORD_CHANGED, who.account, who.target, who.session_id, details={"sessions": 0}))
    password_refused(walk, Action.PASSWORD_CHANGED, "change-password", "current_password", new_password=NEW_PASSWORD)

    walk.post("change-email", who, new_email="changed@example.org", password=NEW_PASSWORD)
    walk.left(Expected(Action.EMAIL_CHANGE_REQUESTED, who.account, who.target, who.session_id))
    password_refused(walk, Action.EMAIL_CHANGE_REQUESTED, "change-email", "password", new_email="elsewhere@example.org")
    vault.register("changed@example.org")
    in_the_way = vault.user("changed@example.org").id
    walk.pass_over()
    token = vault.mailed_token("changed@example.org", of="Confirm your new")
    link_refused(walk, Action.EMAIL_CHANGED, token, who.account)
    walk.post("verify-email", token=token, password=NEW_PASSWORD)
    walk.left(
        Expected(Action.USER_DELETED, None, ("user", in_the_way), reason="unverified"),
        Expected(Action.EMAIL_CHANGED, (who.account[0], "changed@example.org"), who.target, details={"sessions": 0}),
    )

    who.person.rename("Anna")
    walk.left(Expected(Action.PROFILE_CHANGED, (who.account[0], "changed@example.org"), who.target, who.session_id))


def link_refused(walk: Walk, action: Action, token: str, account: tuple[uuid.UUID, str]) -> None:
    """What a link that asks for a password leaves behind when it is refused."""
    for _ in range(4):
        walk.post("login", email=account[1], password=WRONG_PASSWORD)
    walk.pass_over()

    refused = Expected(action, account, ("user", account[0]), None, "failed", "password", {}, {"password": 1})
    walk.post("verify-email", token=token, password=WRONG_PASSWORD)
    lockout = {"reason": "network", "details": {"delay_seconds": 1}, "counted": {"network": 1}}
    walk.left(refused, replace(refused, action=Action.LOCKOUT, **lockout))
    walk.post("verify-email", token=token, password=WRONG_PASSWORD)
    walk.left(replace(refused, reason="delayed", counted={"delayed": 1}))
    walk.vault.execute(sa.delete(PasswordAttempts))


def password_refused(walk: Walk, action: Action, path: str, name: str, **fields: str) -> None:
    """What every route that asks for a password leaves behind when it is refused."""
    vault, who = walk.vault, walk.member(f"{uuid.uuid4().hex}@example.org")
    send = who.person.delete if path == "me" else who.person.post

    def attempt(password: str) -> int:
        return int(send(f"{AUTH}/{path}", json={name: password, **fields}).status_code)

    failed = Expected(action, who.account, who.target, who.session_id, "failed", "password")
    for _ in range(4):
        attempt(WRONG_PASSWORD)
        walk.left(failed)
    attempt(WRONG_PASSWORD)
    walk.left(failed, replace(failed, action=Action.LOCKOUT, reason="network", details={"delay_seconds": 1}))
    attempt(PASSWORD)
    walk.left(replace(failed, reason="delayed"))
    vault.execute(sa.delete(PasswordAttempts))
    with meanwhile(lambda: vault.change_user(who.person.email, password_version=7)):
        attempt(PASSWORD)
    walk.left(replace(failed, reason="changed"))


def accounts_go(walk: Walk) -> None:
    password_refused(walk, Action.USER_DELETED, "me", "password")
    admin, who = walk.member("admin@example.org", role="admin"), walk.member("leaves@example.org")

    admin.person.delete_account()
    walk.left(Expected(Action.USER_DELETED, admin.account, admin.target, admin.session_id, "failed", "last_admin"))
    who.person.delete_account()
    walk.left(Expected(Action.USER_DELETED, who.account, who.target, who.session_id, details={"files": 0}))
    large = walk.member("large@example.org")
    large.person.upload(b"content")
    walk.pass_over()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Eraser, "batch", 1)
        large.person.delete_account()
    ended = Expected(Action.USER_DELETED, large.account, large.target, large.session_id, details={"files": 0})
    if walk.vault.container.core.engine.dialect.name == "sqlite":
        walk.left(replace(ended, action=Action.USER_FILES_DELETED, details={"files": 1}), ended)
    else:
        # All of them in one transaction, since others can write beside it.
        walk.left(replace(ended, details={"files": 1}))
        walk.observed[Action.USER_FILES_DELETED] = ({("ok", None)}, {"files"})


def sessions_end(walk: Walk) -> None:
    who = walk.member("sessions@example.org")
    other = walk.vault.sign_in(who.person.email)
    walk.pass_over()

    who.person.delete(f"{AUTH}/sessions/{session_of(other.access_token)}")
    ended = ("session", session_of(other.access_token))
    walk.left(Expected(Action.SESSION_REVOKED, who.account, ended, who.session_id))

    walk.post("refresh", refresh_token="nothing")
    walk.left(walk.refused(Action.REFRESH_REFUSED, "token"))
    walk.post("refresh", refresh_token=other.refresh_token)
    walk.left(walk.refused(Action.REFRESH_REFUSED, "ended", who))

    walk.post("logout", who, scope="local")
    details = {"scope": "local", "sessions": 1}
    walk.left(Expected(Action.LOGOUT, who.account, who.target, who.session_id, details=details))

    again = walk.vault.sign_in(who.person.email)
    pair = walk.post("refresh", refresh_token=again.refresh_token).json
    walk.post("refresh", refresh_token=pair["refresh_token"])
    walk.pass_over()
    walk.post("refresh", refresh_token=again.refresh_token)
    stolen = session_of(again.access_token)
    walk.left(Expected(Action.REFRESH_REUSED, who.account, ("session", stolen), stolen, "failed", "reused"))


def files_come_and_go(walk: Walk) -> None:
    store, who = walk.vault.store, walk.member("files@example.org")

    def expected(action: Action, outcome: str = "ok", reason: str | None = None, **details: int) -> Expected:
        return Expected(action, who.account, target, who.session_id, outcome, reason, details)

    content = b"x" * 300_000
    stored = who.person.upload(content, name="secret plans.txt")
    path, target = f"{FILES}/{stored['id']}", ("file", uuid.UUID(stored["id"]))
    walk.left(expected(Action.FILE_UPLOADED, size_bytes=300_000))

    # Shown, or saved because it is not a type that may be shown, is not what is asked for.
    page = who.person.upload(b"<script>", name="page.html", content_type="text/html")
    walk.pass_over()
    views = (Action.FILE_VIEW_STARTED, Action.FILE_VIEW_ENDED)
    downloads = (Action.FILE_DOWNLOAD_STARTED, Action.FILE_DOWNLOAD_ENDED)
    for query, headers, (started, ended), first, length in (
        ("", {}, downloads, 0, 300_000),
        ("?disposition=inline", {}, views, 0, 300_000),
        ("", {"Range": "bytes=100-199"}, downloads, 100, 100),
    ):
        who.person.get(f"{path}/content{query}", headers=headers, buffered=True)
        beginning = expected(started, size_bytes=300_000, first_byte=first, bytes_wanted=length)
        walk.left(beginning, expected(ended, bytes_served=length))
    for query, (started, ended) in (("", downloads), ("?disposition=inline", views)):
        broken_off = who.person.get(f"{path}/content{query}", buffered=False)
        served = len(next(broken_off.iter_encoded()))
        broken_off.close()
        beginning = expected(started, size_bytes=300_000, first_byte=0, bytes_wanted=300_000)
        walk.left(beginning, expected(ended, "failed", bytes_served=served))
    # All of it was handed over, but nobody asked whether there was more: the last piece may not have been sent.
    broken_off = who.person.get(f"{path}/content", headers={"Range": "bytes=100-199"}, buffered=False)
    broken_off.close()
    walk.left(
        expected(Action.FILE_DOWNLOAD_STARTED, size_bytes=300_000, first_byte=100, bytes_wanted=100),
        expected(Action.FILE_DOWNLOAD_ENDED, "failed", bytes_served=100),
    )
    who.person.get(f"{FILES}/{page['id']}/content?disposition=inline", buffered=True)
    assert {event.action for event in walk.pass_over()} == {"file.download_started", "file.download_ended"}
    for _ in range(4):
        who.person.get(f"{path}/content", headers={"Range": "bytes=100-199"}, buffered=True)
    # What follows the first of a window is counted, and becomes one event.
    counted = {"begun": 3, "ended": 3, "broken_off": 0, "bytes_served": 300}
    read_on = expected(Action.FILE_READ_ON, **counted)
    walk.left(
        expected(Action.FILE_DOWNLOAD_STARTED, size_bytes=300_000, first_byte=100, bytes_wanted=100),
        expected(Action.FILE_DOWNLOAD_ENDED, bytes_served=100),
        replace(read_on, details={"after": "file.download_started", **counted}),
    )
    who.person.head(f"{path}/content")
    who.person.get(f"{path}/content", headers={"If-None-Match": f'"{stored["etag"]}"'})
    who.person.get(f"{path}/content", headers={"Range": "bytes=300000-"})
    walk.left()

    who.person.patch(path, json={"name": "other plans.txt"})
    walk.left(expected(Action.FILE_RENAMED))
    (key,) = [key for key in walk.vault.objects() if stored["etag"] in key]
    whole = store.objects[key]
    store.objects[key] = whole[:-1] + bytes([whole[-1] ^ 1])
    who.person.get(f"{path}/content", headers={"Range": "bytes=-1"})
    walk.left(expected(Action.FILE_INTEGRITY_FAILED, "failed", "authentication"))
    store.objects[key] = whole
    who.person.delete(path)
    walk.left(expected(Action.FILE_DELETED))
    who.person.delete(f"{FILES}/{page['id']}")
    walk.vault.run_queue()
    walk.pass_over()


def uploads_end(walk: Walk) -> None:
    vault, store, who = walk.vault, walk.vault.store, walk.member("uploads@example.org")

    def begun(length: int | None = 8, **values: str) -> Upload:
        upload = Upload.begin(who.person, length, **values)
        size = {"details": {"size_bytes": length}}
        walk.left(Expected(Action.UPLOAD_CREATED, who.account, ("upload", upload.id), who.session_id, **size))
        return upload

    def ended(upload: Upload, outcome: str = "ok", reason: str | None = None) -> Expected:
        return Expected(Action.UPLOAD_ENDED, who.account, ("upload", upload.id), who.session_id, outcome, reason)

    def failed(upload: Upload, reason: str) -> None:
        walk.left(ended(upload, "failed", reason))

    upload = begun(None)
    upload.delete()
    walk.left(ended(upload))
    retired = RetiredKey(key_ref=vault.key_ref, retired_at=vault.clock())
    upload = begun(sha256="0" * 64)
    upload.patch(b"8 bytes.", 0)
    failed(upload, "digest_mismatch")
    for lose, reason in (
        (store.pieces.clear, "piece"),
        (lambda: vault.execute(sa.update(ResumableUpload).values(sealed_state=bytes(148))), "state"),
        (lambda: vault.change_user(who.person.email, may_store=False), "disabled"),
        (lambda: vault.add(retired), "key"),
    ):
        upload = begun()
        upload.patch(b"8 b", 0)
        lose()
        upload.patch(b"ytes.", 3)
        vault.change_user(who.person.email, may_store=True)
        vault.execute(sa.delete(RetiredKey))
        failed(upload, reason)
    upload = begun(SMALL_PART)
    upload.patch(bytes(FIRST_PART), 0)
    store.parts.clear()
    upload.patch(bytes(SMALL_PART - FIRST_PART), FIRST_PART)
    failed(upload, "parts_lost")

    upload = begun()
    upload.change(expires_at=vault.clock())
    vault.container.celery.tasks[TASK_TEND_UPLOADS]()
    walk.left(Expected(Action.UPLOAD_EXPIRED, target=("upload", upload.id), origin=WORKER))
    upload = begun()
    upload.send(b"8 bytes.")
    file_id = uuid.UUID(upload.file_id())
    stored = Expected(Action.FILE_UPLOADED, who.account, ("file", file_id), who.session_id, details={"size_bytes": 8})
    walk.left(stored)
    who.person.delete(f"{FILES}/{file_id}")
    vault.run_queue()
    walk.pass_over()


def trees_change(walk: Walk) -> None:
    who = walk.member("folders@example.org")
    file_id = who.person.upload(b"first", name="plan.txt")["id"]
    walk.pass_over()

    def does(method: str, path: str, *events: tuple[Action, tuple[str, str], dict[str, int]], **kwargs: Any) -> Any:
        answer = getattr(who.person, method)(path, **kwargs)
        walk.left(
            *(
                Expected(action, who.account, (kind, uuid.UUID(target)), who.session_id, details=details)
                for action, (kind, target), details in events
            )
        )
        return answer

    content, entry = f"{FILES}/{file_id}/content", f"{ENTRIES}/{file_id}"
    answer = who.person.post(FOLDERS, json={"name": "secret plans", "parent_id": "root"})
    folder_id = answer.json["id"]
    file, folder = ("file", file_id), ("folder", folder_id)
    walk.left(Expected(Action.FOLDER_CREATED, who.account, ("folder", uuid.UUID(folder_id)), who.session_id))

    does("put", content, (Action.FILE_VERSION_ADDED, file, {"size_bytes": 6}), data=b"second")
    again = {"query_string": {"name": "plan.txt", "on_conflict": "version"}, "data": b"the third"}
    does("post", FILES, (Action.FILE_VERSION_ADDED, file, {"size_bytes": 9}), **again)
    restored = (Action.FILE_VERSION_RESTORED, file, {"version_no": 1, "as_version_no": 4})
    does("post", f"{FILES}/{file_id}/versions/1/restore", restored)
    does("delete", f"{FILES}/{file_id}/versions/2", (Action.FILE_VERSION_DELETED, file, {"version_no": 2}))
    copy = who.person.post(f"{FILES}/{file_id}/copy", json={"parent_id": folder_id}).json["id"]
    walk.left(
        Expected(Action.FILE_COPIED, who.account, ("file", uuid.UUID(copy)), who.session_id, details={"size_bytes": 5})
    )

    there, below = {"json": {"parent_id": folder_id, "name": "moved.txt"}}, {"json": {"name": "other plans"}}
    does("patch", entry, (Action.ENTRY_MOVED, file, {}), **there)
    does("patch", entry, (Action.FILE_RENAMED, file, {}), json={"name": "renamed.txt"})
    does("patch", f"{ENTRIES}/{folder_id}", (Action.ENTRY_MOVED, folder, {}), **below)
    for target in (file, folder):
        does("post", f"{ENTRIES}/{target[1]}/trash", (Action.ENTRY_TRASHED, target, {}))
        does("post", f"{ENTRIES}/{target[1]}/restore", (Action.ENTRY_RESTORED, target, {}))
    does("post", f"{entry}/trash", (Action.ENTRY_TRASHED, file, {}))
    does("delete", TRASH, (Action.ENTRY_PURGED, ("user", str(who.account[0])), {"entries": 1}))
    does("delete", f"{ENTRIES}/{folder_id}?recursive=true", (Action.ENTRY_PURGED, folder, {}))
    walk.vault.run_queue()
    walk.left()


def administrators_act(walk: Walk) -> None:
    vault, boss, who = walk.vault, walk.vault.user("admin@example.org"), walk.member("managed@example.org")
    admin = Who(vault.sign_in(boss.email), (boss.id, boss.email), uuid.UUID(int=0))
    admin = replace(admin, session_id=session_of(admin.person.access_token))
    file_id = who.person.upload(b"content")["id"]
    walk.pass_over()
    path = f"{ADMIN}/users/{who.account[0]}"

    def expected(action: Action, target: Any = who.target, reason: str | None = None, **details: Any) -> Expected:
        outcome = "failed" if reason else "ok"
        return Expected(action, admin.account, target, admin.session_id, outcome, reason, details)

    who.person.get(path)
    denied = {"method": "GET", "route": f"{ADMIN}/users/<uuid:user_id>"}
    walk.left(Expected(Action.ACCESS_DENIED, who.account, None, who.session_id, "failed", "role", denied))

    admin.person.get(f"{ADMIN}/files")
    walk.left(expected(Action.ADMIN_FILES_LISTED, None))
    admin.person.get(f"{ADMIN}/files?owner_id={who.account[0]}")
    walk.left(expected(Action.ADMIN_FILES_LISTED))
    admin.person.delete(f"{ADMIN}/files/{file_id}")
    owner = {"owner_id": str(who.account[0])}
    walk.left(expected(Action.ADMIN_FILE_DELETED, ("file", uuid.UUID(file_id)), **owner))

    admin.person.patch(path, json={"role": "admin", "quota_bytes": 5})
    walk.left(
        expected(Action.ADMIN_ROLE_CHANGED, old="user", new="admin"),
        expected(Action.ADMIN_QUOTA_CHANGED, old=None, new=5),
    )
    admin.person.patch(path, json={"role": "user"})
    walk.left(expected(Action.ADMIN_ROLE_CHANGED, old="admin", new="user"))
    for _ in range(3):
        admin.person.post(f"{path}/send-password-reset")
        walk.left(expected(Action.ADMIN_RESET_SENT))
    admin.person.post(f"{path}/send-password-reset")
    walk.left(expected(Action.ADMIN_RESET_SENT, reason="too_often"))
    admin.person.patch(path, json={"disabled": True})
    walk.left(expected(Action.ADMIN_USER_DISABLED, sessions=1))
    admin.person.patch(path, json={"disabled": False})
    walk.left(expected(Action.ADMIN_USER_ENABLED))
    admin.person.delete(path)
    walk.left(expected(Action.ADMIN_USER_DELETED, files=0))

    admin.person.get(f"{ADMIN}/audit")
    walk.left()
    admin.person.get(f"{ADMIN}/audit/export?format=csv&outcome=failed")
    walk.left(expected(Action.AUDIT_EXPORTED, None, format="csv", filters={"outcome": "failed"}))
    admin.person.head(f"{ADMIN}/audit/export?format=csv")
    walk.left()

    own = f"{ADMIN}/users/{boss.id}"
    for action, ask in (
        (Action.ADMIN_ROLE_CHANGED, lambda: admin.person.patch(own, json={"role": "user"})),
        (Action.ADMIN_USER_DISABLED, lambda: admin.person.patch(own, json={"disabled": True})),
        (Action.ADMIN_USER_DELETED, lambda: admin.person.delete(own)),
    ):
        ask()
        walk.left(expected(action, admin.target, "last_admin"))


def operators_act(walk: Walk) -> None:
    vault = walk.vault
    store, who = vault.store, walk.member("operated@example.org")
    stored = who.person.upload(b"content")
    walk.pass_over()
    target = ("file", uuid.UUID(stored["id"]))
    old = vault.key_ref

    def by_operator(action: Action, **given: Any) -> Expected:
        return Expected(action, origin=OPERATOR, **given)

    assert vault.command("files", "reencrypt", stored["id"]).exit_code == 0
    refs = {"from_ref": old, "to_ref": old}
    walk.left(by_operator(Action.FILE_REENCRYPTED, target=target, details=refs))

    (key,) = [key for key in vault.objects() if str(vault.file(stored["id"]).object_id) in key]
    whole = store.objects[key]
    store.objects[key] = whole[:-1] + bytes([whole[-1] ^ 1])
    assert vault.command("files", "verify", "--all").exit_code == 1
    failed = {"target": target, "outcome": "failed", "reason": "authentication"}
    walk.left(by_operator(Action.FILE_INTEGRITY_FAILED, **failed))
    store.objects[key] = whole

    after = vault.with_new_key()
    after.clock.now = vault.clock()
    new = after.key_ref
    assert after.command("keys", "rewrap").exit_code == 0
    walk.left(by_operator(Action.KEYS_REWRAPPED, details={"rows": 1, "from_ref": old, "to_ref": new}))
    assert after.command("keys", "retire", old).exit_code == 0
    walk.left(by_operator(Action.KEY_RETIRED, details={"key_ref": old}))
    assert after.command("keys", "restore", old).exit_code == 0
    walk.left(by_operator(Action.KEY_RESTORED, details={"key_ref": old}))

    by_hand = ("user", who.account[0])
    quota = {"old": None, "new": 1024}
    for arguments, action, details in (
        (["disable"], Action.ADMIN_USER_DISABLED, {"sessions": 1}),
        (["enable"], Action.ADMIN_USER_ENABLED, {}),
        (["set-quota", "1KiB"], Action.ADMIN_QUOTA_CHANGED, quota),
        (["delete", "--yes"], Action.ADMIN_USER_DELETED, {"files": 1}),
    ):
        assert after.command("users", arguments[0], who.person.email, *arguments[1:]).exit_code == 0
        walk.left(by_operator(action, target=by_hand, details=details))
    assert vault.command("users", "create-admin", "invited@example.org").exit_code == 0
    invited = vault.user("invited@example.org")
    target = ("user", invited.id)
    walk.left(by_operator(Action.ADMIN_INVITED, target=target, details={"new_account": True, "sessions": 0}))
    walk.post("reset-password", token=vault.mailed_token(invited.email), new_password=NEW_PASSWORD)
    account, role = (invited.id, invited.email), {"old": "user", "new": "admin"}
    walk.left(
        Expected(Action.PASSWORD_RESET, account, target, details={"sessions": 0}),
        Expected(Action.EMAIL_VERIFIED, account, target),
        Expected(Action.ADMIN_ROLE_CHANGED, account, target, reason="invitation", details=role),
    )

    store.objects[ORPHAN] = b"nobody's"
    assert after.command("files", "reap", "--orphans", "--yes", "--max", "100").exit_code == 0
    walk.left(
        by_operator(Action.FILES_REAP_STARTED, details={"expired": 0, "removed": 1}),
        by_operator(Action.FILES_REAPED, details={"expired": 0, "removed": 1, "failed": 0}),
        by_operator(Action.FILES_REAP_STARTED, details={"orphans": 1}),
        by_operator(Action.FILES_REAPED, details={"orphans": 1}),
    )
    assert after.command("files", "reap").exit_code == 0
    walk.left()
    epoch = Epoch.parse(store.objects[EPOCH_KEY])
    assert epoch is not None
    store.objects[EPOCH_KEY] = b"damaged"
    assert after.command("files", "adopt", "--yes").exit_code == 0
    walk.left(by_operator(Action.FILES_ADOPTED, details={"epoch": epoch.number + 1, "store_epoch": 0}))


def tasks_run(walk: Walk) -> None:
    vault = walk.vault
    who = walk.member("doomed@example.org")
    who.person.delete(f"{FILES}/{who.person.upload(b'doomed')['id']}")
    loser = walk.member("loser@example.org")
    kept, lost = (loser.person.upload(b"content", name)["id"] for name in ("kept.txt", "lost.txt"))
    for number in range(12):
        loser.person.put(f"{FILES}/{kept}/content", data=b"content" * number)
    loser.person.post(f"{ENTRIES}/{lost}/trash")
    vault.register("unconfirmed@example.org")
    user_id = vault.user("unconfirmed@example.org").id
    walk.pass_over()
    tasks = vault.container.celery.tasks

    tasks[TASK_REAP_FILES]()
    walk.left(
        Expected(Action.FILES_REAP_STARTED, origin=WORKER, details={"expired": 0, "removed": 1}),
        Expected(Action.FILES_REAPED, origin=WORKER, details={"expired": 0, "removed": 1, "failed": 0}),
    )
    tasks[TASK_TRIM_VERSIONS]()
    trimmed = {"target": ("file", uuid.UUID(kept)), "details": {"versions": 2}}
    walk.left(Expected(Action.FILE_VERSION_DELETED, origin=WORKER, **trimmed))
    vault.clock.advance(days=8)
    tasks[TASK_SWEEP_ACCOUNTS]()
    walk.left(Expected(Action.USER_DELETED, None, ("user", user_id), reason="unverified", origin=WORKER))
    forgetful = vault.rotated(TRASH_DAYS="7")
    forgetful.clock.now = vault.clock()
    forgetful.container.celery.tasks[TASK_EXPIRE_TRASH]()
    walk.left(Expected(Action.ENTRY_PURGED, target=loser.target, origin=WORKER, details={"entries": 1}))

    bound = vault.clock() - timedelta(days=7)
    old = vault.scalar(sa.select(sa.func.count()).select_from(AuditEvent).where(AuditEvent.at < bound))
    keeping = vault.rotated(AUDIT_RETENTION_DAYS="7")
    keeping.clock.now = vault.clock()
    keeping.container.celery.tasks[TASK_ENFORCE_RETENTION]()
    pruned = {"events": old, "before": bound.isoformat()}
    walk.left(Expected(Action.AUDIT_PRUNED, origin=WORKER, details=pruned))

    last = vault.clock()
    vault.clock.advance(days=15)
    assert vault.command("audit", "accept-clock", "--yes").exit_code == 0
    accepted = {"now": vault.clock().isoformat(), "last_pass": last.isoformat()}
    walk.left(Expected(Action.CLOCK_ACCEPTED, origin=OPERATOR, details=accepted))
