"""The document is true: whatever Schemathesis makes of it, answers are as it says, and never a 500."""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import schemathesis
from schemathesis.engine import Status, StopReason, events, from_schema
from schemathesis.transport.wsgi import WSGITransport

from testing.tus import STREAM, Upload, metadata
from testing.vault import FILES, PASSWORD, SQLITE, Person, Vault

CONTENT = b"what is in the file"
PHASES = dict.fromkeys(("coverage", "fuzzing", "stateful", "examples"), Status.SUCCESS)
# What the document can say to be well-formed, and only the service knows to be refused.
REFUSED = ["400", "401", "403", "404", "409", "412", "413", "416", "422", "429"]
CONDITIONS = [{}, {"Range": "bytes=2-5"}, {"If-None-Match": "*"}, {}, {"Range": "bytes=99-"}, {"If-Match": '"other"'}]

schemathesis.serializer.alias(STREAM["Content-Type"], "application/octet-stream")

# On a busy machine it takes a few times as long as alone.
pytestmark = [SQLITE, pytest.mark.timeout(400), pytest.mark.uncounted]


class Visitors:
    """Schemathesis's source of tokens. Most requests that keep to the document also get what nobody could guess.

    Whatever changes an account is done to one of its own, so that the others' tokens stay good; administrators do it
    to somebody who is there for nothing else.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._numbers = itertools.count()
        self._anna = vault.member(self._new_address())
        self._root = vault.member(self._new_address(), role="admin")
        self._kept = {str(vault.user(person.email).id) for person in (self._anna, self._root)}
        self._random = random.Random(0)
        # Made beforehand: mail takes random numbers, which Hypothesis forbids while it draws.
        self._tokens = {"verify-email": self._verification_tokens(), "reset-password": self._reset_tokens()}
        self._conditions = itertools.cycle(CONDITIONS)

    def get(self, case: schemathesis.Case, _context: schemathesis.AuthContext) -> Person:
        if "/admin/" in case.path:
            return self._root
        changes_account = "/auth/" in case.path and case.method in ("POST", "DELETE")
        return self._vault.member(self._new_address()) if changes_account else self._anna

    def set(self, case: schemathesis.Case, person: Person, _context: schemathesis.AuthContext) -> None:
        if case.meta is not None and case.meta.generation.mode.is_positive and self._random.random() < 0.7:
            self._fill_in(case, person)
        if case.path_parameters.get("user_id") in self._kept:
            # Found in a list.
            case.path_parameters["user_id"] = self._victim()
        case.headers["Authorization"] = f"Bearer {person.access_token}"

    def _victim(self) -> str:
        return str(self._vault.user(self._vault.member(self._new_address()).email).id)

    def _new_address(self) -> str:
        return f"person{next(self._numbers)}@example.org"

    def _fill_in(self, case: schemathesis.Case, person: Person) -> None:
        true: dict[str, Callable[[], object]] = {
            "file_id": lambda: self._file_for(case, person),
            "entry_id": lambda: self._file_for(case, person),
            "ids": lambda: [self._file_for(case, person)],
            "folder_id": lambda: "root",
            "parent_id": lambda: "root",
            "version_no": lambda: 1,
            # Generated names are few and soon taken.
            "name": lambda: f"name {next(self._numbers)}",
            "path": lambda: "/",
            "user_id": self._victim,
            "session_id": lambda: str(person.get("/api/v1/auth/sessions").json["items"][0]["id"]),
            "email": lambda: person.email,
            "new_email": self._new_address,
            "password": lambda: PASSWORD,
            "current_password": lambda: PASSWORD,
            "new_password": lambda: f"other {PASSWORD}",
            "refresh_token": lambda: person.refresh_token,
            "token": lambda: next(self._tokens[case.path.rpartition("/")[2]]),
        }
        for values in (case.path_parameters, case.body):
            if isinstance(values, dict):
                values.update({name: true[name]() for name in values if name in true})
        case.query.pop("cursor", None)
        case.query.update({name: true[name]() for name in ("folder_id", "path") if name in case.query})
        case.headers.clear()
        if case.path.endswith("/content"):
            case.headers.update(next(self._conditions))
        elif "/uploads" in case.path:
            self._fill_in_upload(case, person)

    @staticmethod
    def _fill_in_upload(case: schemathesis.Case, person: Person) -> None:
        """Make a request about an upload of its own one that goes on with it."""
        if case.method == "GET":
            return
        # More requests come in a second than a client may send.
        person.vault.container.resumable.rate.storage.reset()
        headers = {**STREAM, "Upload-Offset": "0"}
        if "upload_id" in case.path_parameters:
            case.path_parameters["upload_id"] = str(Upload.begin(person, len(CONTENT)).id)
            if case.method == "POST":
                headers["X-HTTP-Method-Override"] = "PATCH"
        else:
            headers |= {"Upload-Length": str(len(CONTENT)), "Upload-Metadata": metadata(filename="notes.txt")}
        case.headers.update(headers)
        if case.method in ("POST", "PATCH"):
            # Of bytes, Schemathesis would say that they do not follow the document.
            case.body, case.media_type = CONTENT.decode(), headers["Content-Type"]

    @staticmethod
    def _file_for(case: schemathesis.Case, person: Person) -> str:
        """Store a file in the state in which this operation succeeds."""
        file_id = str(person.upload(CONTENT)["id"])
        if "/versions/" in case.path:
            person.put(f"{FILES}/{file_id}/content", data=CONTENT)
        elif case.path.endswith("/restore"):
            person.post(f"/api/v1/entries/{file_id}/trash")
        return file_id

    def _verification_tokens(self) -> Iterator[str]:
        """One over and over: for an hour it is good again."""
        address = self._new_address()
        self._vault.register(address)
        return itertools.repeat(self._vault.mailed_token(address))

    def _reset_tokens(self) -> Iterator[str]:
        """Each of somebody else, and good once."""
        people = [self._vault.member(self._new_address()) for _ in range(10)]
        for person in people:
            self._vault.client.post("/api/v1/auth/forgot-password", json={"email": person.email})
        return itertools.cycle([self._vault.mailed_token(person.email) for person in people])


@dataclass
class Findings:
    """What a run has seen: answers by operation and status, those to other methods left out, and what is wrong."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    problems: set[str] = field(default_factory=set)

    @property
    def succeeded(self) -> set[str]:
        return {operation for operation, status in self.answers if status // 100 == 2}

    def of(self, operation: str) -> set[int]:
        return {status for label, status in self.answers if label == operation}


def explore(vault: Vault, visitors: Visitors | None, *, examples: int, seed: int) -> Findings:
    """Run every phase and check of Schemathesis over the whole document."""
    config = {
        "seed": seed,
        "cache": {"enabled": False},
        "auth": {"auto-signup": False},
        "continue-on-failure": True,
        "generation": {"max-examples": examples, "deterministic": True, "database": "none", "no-shrink": True},
        "checks": {
            "positive_data_acceptance": {"expected-statuses": ["2xx", "3xx", *REFUSED]},
            "negative_data_rejection": {"expected-statuses": [*REFUSED, "405", "406", "415", "428"]},
        },
    }
    api = schemathesis.openapi.from_wsgi("/openapi.json", vault.app, config=schemathesis.Config.from_dict(config))
    if visitors is not None:
        api.auth.providers.append(visitors)
    findings, phases, stopped = Findings(), {}, None
    for event in from_schema(api).execute():
        match event:
            case events.ScenarioFinished(recorder=recorder):
                note(recorder, findings)
            case events.NonFatalError(label=label, info=info):
                findings.problems.add(f"{label}: {info.format()}")
            case events.FatalError(exception=exception):
                raise exception
            case events.PhaseFinished(phase=phase, status=status):
                phases[phase.name.value] = status
            case events.EngineFinished(stop_reason=stopped):
                pass
    assert {name: phases[name] for name in PHASES} == PHASES
    assert stopped is StopReason.COMPLETED
    return findings


def note(recorder: Any, findings: Findings) -> None:
    for case_id, interaction in recorder.interactions.items():
        operation = recorder.cases[case_id].value.operation
        response = interaction.response
        if response is None or response.request.method != operation.method.upper():
            continue
        findings.answers[operation.label, response.status_code] += 1
        # Of its own, Schemathesis is content with a default.
        if str(response.status_code) not in operation.responses.status_codes:
            findings.problems.add(f"{operation.label}: {response.status_code} is not in the document")
    for checks in recorder.checks.values():
        for check in checks:
            if check.failure_info is not None:
                failure = check.failure_info.failure
                findings.problems.add(
                    f"{failure.operation}: {failure.title}\n{failure.message}\n{check.failure_info.code_sample}"
                )


@pytest.fixture(autouse=True)
def _only_what_wsgi_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep from the WSGI transport what belongs to a connection: settings of sockets, which the check of authentication
    passes, and transfer codings, of which an unknown one is a 501 for every route."""
    send = WSGITransport.send

    def send_without(self: WSGITransport, case: schemathesis.Case, **kwargs: Any) -> schemathesis.Response:
        for name in ("max_redirects", "verify", "cert"):
            kwargs.pop(name, None)
        for name in [name for name in case.headers or {} if name.lower() == "transfer-encoding"]:
            del case.headers[name]
        return send(self, case, **kwargs)

    monkeypatch.setattr(WSGITransport, "send", send_without)


def operations(vault: Vault, *, closed: bool | None = None) -> set[str]:
    """`METHOD /path` of each operation; only of those that need a token, or only of the others."""
    return {
        f"{method.upper()} {path}"
        for path, item in vault.client.get("/openapi.json").json["paths"].items()
        for method, operation in item.items()
        if method != "parameters" and closed in (None, bool(operation["security"]))
    }


@pytest.mark.parametrize(
    ("examples", "seed"), [(10, 1), pytest.param(400, 2, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_signed_in_clients_are_answered_as_the_document_says(vault: Vault, examples: int, seed: int) -> None:
    found = explore(vault, Visitors(vault), examples=examples, seed=seed)

    assert not found.problems, "\n\n".join(sorted(found.problems))
    assert found.succeeded == operations(vault)
    for method in ("GET", "HEAD"):
        assert found.of(f"{method} /api/v1/files/{{file_id}}/content") >= {200, 304, 401, 404, 412, 422}
    assert found.of("GET /api/v1/files/{file_id}/content") >= {206, 416}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_anonymous_clients_are_answered_as_the_document_says(vault: Vault) -> None:
    found = explore(vault, None, examples=200, seed=2)

    assert not found.problems, "\n\n".join(sorted(found.problems))
    assert {operation for operation, _ in found.answers} == operations(vault)
    assert found.succeeded <= operations(vault, closed=False)
