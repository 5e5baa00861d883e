"""Cheap HTTP clients, since they share the cores with what they measure."""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPResponse
from time import perf_counter
from typing import Final, Self

from bench.measuring import MIB

# Random content, repeated in each file, that no server can guess.
_BLOCK: Final = os.urandom(MIB)


class Client:
    """One kept-alive connection with fixed headers. Unexpected answers end the program."""

    def __init__(self, port: int, headers: Mapping[str, str]) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=600)
        self.headers = dict(headers)
        self._buffer = bytearray(MIB)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def upload(self, method: str, path: str, size: int) -> bytes:
        """Send a file of this size; return the answer's body."""
        answer = self.send(method, path, size, {"Content-Type": "application/octet-stream"})
        return answer.read()

    def send(
        self, method: str, path: str, size: int, headers: Mapping[str, str], *, also: tuple[int, ...] = ()
    ) -> HTTPResponse:
        """Send so many bytes; return the answer, a success or one of the statuses in `also`."""
        headers = {**self.headers, **headers, "Content-Length": str(size)}
        self._connection.request(method, path, _pieces(size), headers)
        return self._answer((200, 201, 204, *also))

    def request(self, method: str, path: str, headers: Mapping[str, str]) -> HTTPResponse:
        """Send a request without a body; return the answer, whose body was read."""
        self._connection.request(method, path, headers={**self.headers, **headers})
        answer = self._answer((200, 201, 204))
        answer.read()
        return answer

    def download(self, path: str, size: int, *, verify: bool = False) -> None:
        """Read a file to its end; with `verify`, compare it with what `upload` sent."""
        sha256, left = hashlib.sha256(), size
        self._connection.request("GET", path, headers=self.headers)
        answer = self._answer((200,))
        while count := answer.readinto(self._buffer):
            left -= count
            if verify:
                sha256.update(memoryview(self._buffer)[:count])
        if left or (verify and sha256.digest() != _digest(size)):
            raise SystemExit(f"{path} came back with other bytes than were sent, or not all of them.")

    def delete(self, path: str) -> None:
        self._connection.request("DELETE", path, headers=self.headers)
        self._answer((200, 204)).read()

    def get(self, path: str, *, headers: Mapping[str, str] | None = None) -> bytes:
        """Return a small answer."""
        self._connection.request("GET", path, headers={**self.headers, **(headers or {})})
        return self._answer((200, 206)).read()

    def seconds_of(self, path: str, *, headers: Mapping[str, str] | None = None) -> float:
        """Return the seconds to a small answer's last byte."""
        began = perf_counter()
        self.get(path, headers=headers)
        return perf_counter() - began

    def _answer(self, expected: tuple[int, ...]) -> HTTPResponse:
        answer = self._connection.getresponse()
        if answer.status not in expected:
            raise SystemExit(f"Answered {answer.status}: {answer.read()[:500].decode(errors='replace')}")
        return answer


class VaultClient(Client):
    """A signed-in client of the vault."""

    def store(self, size: int) -> str:
        """Upload a file; return the path of its content."""
        # A name of its own: a taken one would be looked up for a free number.
        answer = self.upload("POST", f"/api/v1/files?name={uuid.uuid4()}.bin", size)
        return f"/api/v1/files/{json.loads(answer)['id']}/content"


def _pieces(size: int) -> Iterator[memoryview]:
    block = memoryview(_BLOCK)
    for start in range(0, size, MIB):
        yield block[: min(MIB, size - start)]


def _digest(size: int) -> bytes:
    sha256 = hashlib.sha256()
    for piece in _pieces(size):
        sha256.update(piece)
    return sha256.digest()
