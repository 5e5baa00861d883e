"""Clients of the soak: each has an account, sends varied requests, and knows what the vault owes it.

A client compares all bytes with what it sent. After a refusal or without an answer, a file may be there, but then
whole.
"""

import hashlib
import json
import math
import os
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any, Final

from testing.vault import PASSWORD

MIB: Final = 1024**2
_LEAST_BYTES, _MOST_BYTES = 1024, 64 * MIB
_PIECE: Final = MIB
_TIMEOUT_SECONDS: Final = 120.0
# After a failure a client tries another request, after a pause.
_PAUSE_SECONDS: Final = 0.5
_REQUESTS_A_CONNECTION: Final = 20
_BOUNDARY: Final = "soak-5b2e0d9c7a"
_WEIGHTS: Final = {
    "upload": 28, "download": 16, "range": 24, "delete": 8, "list": 12, "facts": 4, "refresh": 5, "login": 3,
}  # fmt: skip


class Blob:
    """Random bytes that every content is a slice of: no two places of it are alike."""

    def __init__(self) -> None:
        self._bytes = os.urandom(2 * _MOST_BYTES)

    def place(self, size: int, chance: random.Random) -> int:
        return chance.randrange(len(self._bytes) - size + 1)

    def slice(self, at: int, length: int) -> bytes:
        return self._bytes[at : at + length]

    def pieces(self, at: int, size: int) -> Iterator[bytes]:
        for begin in range(at, at + size, _PIECE):
            yield self._bytes[begin : min(begin + _PIECE, at + size)]


@dataclass(frozen=True)
class Content:
    """What was sent: a slice of the blob."""

    at: int
    size: int


@dataclass(frozen=True)
class Request:
    """A finished request. `status` is None without a whole answer; `note` says what came instead."""

    kind: str
    began: float
    ended: float
    status: int | None
    code: str = ""
    note: str = ""
    sent_bytes: int = 0
    received_bytes: int = 0

    @property
    def is_fine(self) -> bool:
        return self.status is not None and self.status < 400


@dataclass
class Journal:
    """What all clients did. `wrongs` have no excuse, whatever was down."""

    requests: list[Request] = field(default_factory=list)
    wrongs: list[str] = field(default_factory=list)


@dataclass
class _Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class _NoAnswer(Exception):
    """No answer, or one that ended early."""


class Client:
    """One account. Takes a listening API server of `ports`, like a balancer."""

    def __init__(self, email: str, ports: Sequence[int], blob: Blob, journal: Journal, working_set: int) -> None:
        self.email = email
        self.stored: dict[str, Content] = {}
        self.perhaps: dict[str, Content] = {}
        self.perhaps_deleted: dict[str, Content] = {}
        self._ports = ports
        self._blob = blob
        self._journal = journal
        self._working_set = working_set
        self._chance = random.Random(email)
        self._connection: HTTPConnection | None = None
        self._left = 0
        self._was_refused = False
        self._access = self._refresh_token = ""
        self._number = 0
        self._acts: dict[str, Callable[[], None]] = {
            "upload": self._upload,
            "download": self._download,
            "range": self._range,
            "delete": self._delete,
            "list": self._list,
            "facts": self._facts,
            "refresh": self._refresh,
            "login": self._login,
        }

    def work(self, until: Callable[[], bool]) -> None:
        kinds, weights = list(_WEIGHTS), list(_WEIGHTS.values())
        while not until():
            if not self._access:
                kind = "login"
            elif sum(content.size for content in self.stored.values()) > self._working_set:
                kind = "delete"
            else:
                (kind,) = self._chance.choices(kinds, weights)
            if kind in ("download", "range", "delete", "facts") and not self.stored:
                kind = "upload"
            try:
                self._acts[kind]()
                pause = _PAUSE_SECONDS if self._was_refused else 0
            except _NoAnswer:
                pause = _PAUSE_SECONDS
            time.sleep(pause)
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def check_everything(self) -> None:
        """Read every owed byte, and look for unexpected files."""
        self._login()
        listed: dict[str, dict[str, Any]] = {}
        cursor: str | None = None
        while True:
            query = {"limit": "200", **({"cursor": cursor} if cursor else {})}
            page = self._ask("list", "GET", f"/api/v1/files?{urllib.parse.urlencode(query)}").json()
            listed |= {item["id"]: item for item in page["items"]}
            if (cursor := page["next_cursor"]) is None:
                break
        for file_id in set(self.stored) - set(listed):
            self.wrong(f"an acknowledged file of {self.stored[file_id].size} bytes is lost")
        for file_id, item in listed.items():
            content = self.stored.get(file_id) or self.perhaps_deleted.get(file_id) or self.perhaps.get(item["name"])
            if content is None:
                self.wrong("a file is there that was deleted or never sent")
            elif item["size"] != content.size:
                self.wrong("a file has another size than what was sent")
            else:
                self._read(file_id, content)
        self.close()

    # Requests

    def _login(self) -> None:
        answer = self._post_json("login", {"email": self.email, "password": PASSWORD})
        self._take_tokens(answer)

    def _refresh(self) -> None:
        token, self._access, self._refresh_token = self._refresh_token, "", ""
        self._take_tokens(self._post_json("refresh", {"refresh_token": token}))

    def _upload(self) -> None:
        size = int(math.exp(self._chance.uniform(math.log(_LEAST_BYTES), math.log(_MOST_BYTES))))
        content = Content(self._blob.place(size, self._chance), size)
        self._number += 1
        name = f"{self.email.partition('@')[0]}-{self._number}.bin"
        self.perhaps[name] = content
        body, length = self._blob.pieces(content.at, size), size
        path, headers = "/api/v1/files", {"Content-Type": "application/octet-stream"}
        kind = self._chance.choice(("upload raw", "upload form"))
        if kind == "upload form":
            head = (
                f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
                "Content-Type: application/octet-stream\r\n\r\n"
            ).encode()
            tail = f"\r\n--{_BOUNDARY}--\r\n".encode()
            body, length = _around(head, body, tail), len(head) + size + len(tail)
            headers["Content-Type"] = f"multipart/form-data; boundary={_BOUNDARY}"
        else:
            path += f"?name={name}"
        answer = self._ask(kind, "POST", path, body, {**headers, "Content-Length": str(length)}, sent_bytes=size)
        if answer.status != 201:
            return
        file = answer.json()
        digest = hashlib.sha256()
        for piece in self._blob.pieces(content.at, size):
            digest.update(piece)
        if (file["size"], file["sha256"]) != (size, digest.hexdigest()):
            self.wrong("an upload was acknowledged with another size or digest")
        del self.perhaps[name]
        self.stored[file["id"]] = content

    def _download(self) -> None:
        self._read(*self._any_file())

    def _range(self) -> None:
        file_id, content = self._any_file()
        first = self._chance.randrange(content.size)
        last = min(content.size - 1, first + int(math.exp(self._chance.uniform(0, math.log(8 * MIB)))))
        self._read(file_id, content, (first, last))

    def _delete(self) -> None:
        file_id, content = self._any_file()
        del self.stored[file_id]
        self.perhaps_deleted[file_id] = content
        if self._ask("delete", "DELETE", f"/api/v1/files/{file_id}").status == 204:
            del self.perhaps_deleted[file_id]
            gone = self._ask("deleted", "GET", f"/api/v1/files/{file_id}/content", expected=404)
            if gone.status < 300:
                self.wrong("a deleted file was served")

    def _list(self) -> None:
        query = {"limit": "50", "sort": self._chance.choice(("name", "created_at", "size", "content_type"))}
        if self._chance.random() < 0.3:
            query["search"] = f"-{self._chance.randrange(100, 1000)}"
        answer = self._ask("list", "GET", f"/api/v1/files?{urllib.parse.urlencode(query)}")
        if answer.status == 200:
            mine = self.email.partition("@")[0]
            if any(not item["name"].startswith(f"{mine}-") for item in answer.json()["items"]):
                self.wrong("a list shows somebody else's file")

    def _facts(self) -> None:
        file_id, content = self._any_file()
        answer = self._ask("facts", "GET", f"/api/v1/files/{file_id}")
        if answer.status == 200 and answer.json()["size"] != content.size:
            self.wrong("a file has another size than what was sent")

    # Their steps

    def _any_file(self) -> tuple[str, Content]:
        return self._chance.choice(list(self.stored.items()))

    def _take_tokens(self, answer: _Answer) -> None:
        self._access = self._refresh_token = ""
        if answer.status == 200:
            tokens = answer.json()
            self._access, self._refresh_token = tokens["access_token"], tokens["refresh_token"]

    def _post_json(self, kind: str, fields: dict[str, str]) -> _Answer:
        body = json.dumps(fields).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        return self._ask(kind, "POST", f"/api/v1/auth/{kind}", [body], headers)

    def _read(self, file_id: str, content: Content, part: tuple[int, int] | None = None) -> None:
        path = f"/api/v1/files/{file_id}/content"
        if part is None:
            self._ask("download", "GET", path, content=content)
            return
        first, last = part
        wanted = Content(content.at + first, last - first + 1)
        answer = self._ask("range", "GET", path, headers={"Range": f"bytes={first}-{last}"}, content=wanted)
        if answer.status == 206 and answer.headers.get("content-range") != f"bytes {first}-{last}/{content.size}":
            self.wrong("a range was answered with another Content-Range")

    def _ask(
        self,
        kind: str,
        method: str,
        path: str,
        body: Iterable[bytes] | None = None,
        headers: dict[str, str] | None = None,
        *,
        content: Content | None = None,
        expected: int | None = None,
        sent_bytes: int = 0,
    ) -> _Answer:
        """Send, compare the answer's bytes with `content`, record it. Raises _NoAnswer."""
        began, status, code, note, answer = time.monotonic(), None, "", "", None
        received = [0]
        try:
            connection, is_new = self._connect()
            note = "on a new connection" if is_new else "on a connection that was kept"
            headers = {**({"Authorization": f"Bearer {self._access}"} if self._access else {}), **(headers or {})}
            response = _exchange(connection, method, path, body, headers)
            note = "in its middle"
            answer = self._receive(response, content, received)
            note, status = "", answer.status
            if status == expected:
                status = 200
            elif status >= 400:
                code = str(answer.json().get("code"))
            if status == 401:
                self._access = self._refresh_token = ""
            if response.will_close:
                self.close()
        except (OSError, HTTPException) as exc:
            self.close()
            note = f"{type(exc).__name__} {note}".strip()
        self._was_refused = status is None or status >= 400
        ended = time.monotonic()
        self._journal.requests.append(Request(kind, began, ended, status, code, note, sent_bytes, received[0]))
        if answer is None:
            raise _NoAnswer
        return answer

    def _receive(self, response: HTTPResponse, content: Content | None, received: list[int]) -> _Answer:
        headers = {name.lower(): value for name, value in response.getheaders()}
        if content is None or response.status not in (200, 206):
            body = response.read()
            received[0] += len(body)
            return _Answer(response.status, headers, body)
        if int(headers["content-length"]) != content.size:
            self.wrong("a download has another length than what was sent")
        at = content.at
        while at < content.at + content.size:
            piece = response.read(min(_PIECE, content.at + content.size - at))
            if not piece:
                raise HTTPException
            if piece != self._blob.slice(at, len(piece)):
                self.wrong("a download has wrong bytes")
            at += len(piece)
            received[0] += len(piece)
        response.read()
        return _Answer(response.status, headers, b"")

    def _connect(self) -> tuple[HTTPConnection, bool]:
        """Return a connection, and whether it is new."""
        if self._connection is not None and self._left > 0:
            self._left -= 1
            return self._connection, False
        self.close()
        ports = self._chance.sample(self._ports, len(self._ports))
        for port in ports:
            connection = HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_SECONDS)
            try:
                connection.connect()
            except ConnectionRefusedError:
                if port == ports[-1]:
                    raise
                continue
            break
        self._connection, self._left = connection, _REQUESTS_A_CONNECTION
        return connection, True

    def wrong(self, what: str) -> None:
        self._journal.wrongs.append(f"{self.email}: {what}")


def at_once(clients: Sequence[Client], act: Callable[[Client], None]) -> list[threading.Thread]:
    """Start one thread for each client."""

    def act_and_tell(client: Client) -> None:
        try:
            act(client)
        except Exception as exc:
            client.wrong(f"it could not go on: {exc!r}")
            raise

    threads = [threading.Thread(target=act_and_tell, args=(client,), name=client.email) for client in clients]
    for thread in threads:
        thread.start()
    return threads


def _around(head: bytes, body: Iterable[bytes], tail: bytes) -> Iterator[bytes]:
    yield head
    yield from body
    yield tail


def _exchange(
    connection: HTTPConnection, method: str, path: str, body: Iterable[bytes] | None, headers: dict[str, str]
) -> HTTPResponse:
    try:
        connection.request(method, path, body, headers)
    except (BrokenPipeError, ConnectionResetError):
        # A refusal comes while the body is being sent.
        return connection.getresponse()
    return connection.getresponse()
