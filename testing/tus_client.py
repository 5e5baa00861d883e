"""A client of resumable uploads (tus 1.0) that does what they ask of clients: it asks where it stands, and goes on."""

import random
from dataclasses import dataclass
from time import sleep
from typing import TYPE_CHECKING, Any, Final

import requests

from testing.raw import head
from testing.tus import STREAM, TUS, UPLOADS, metadata

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

# A client waits so long for its connection to take or bring anything.
_PATIENCE_SECONDS: Final = 6.0
# After these, and after 5xx, clients ask again.
_AGAIN: Final = frozenset({409, 423})


def begin(session: requests.Session, root: str, length: int, **values: str) -> str:
    """Begin an upload; return its path."""
    headers = {**TUS, "Upload-Length": str(length), "Upload-Metadata": metadata(**values)}
    answer = session.post(root + UPLOADS, headers=headers, timeout=60)
    assert answer.status_code == 201, answer.text
    return str(answer.headers["Location"])


def patch_head(path: str, authorization: str, offset: int, framing: str, *lines: str) -> bytes:
    """Return the head of a PATCH; `framing` is the header that frames its body."""
    fixed = [f"{name}: {value}" for name, value in STREAM.items()]
    return head("PATCH", path, authorization, *fixed, f"Upload-Offset: {offset}", framing, *lines)


class Lost(Exception):
    """The server has ended the upload."""


@dataclass
class TusUpload:
    """One file on its way. Each request takes one of `roots`, the ways to the service, at random."""

    roots: list[str]
    authorization: str
    path: str
    content: bytes
    # The furthest offset that the server has told
    told: int = 0

    def run(self) -> str:
        """Send until the upload is a file, and return its id. Raises Lost."""
        offset: int | None = None
        while True:
            answer = self._look() if offset is None else self._send(offset)
            offset = None
            if answer is None or answer.status_code in _AGAIN or answer.status_code >= 500:
                sleep(random.uniform(0.1, 0.6))
                continue
            if not answer.ok:
                raise Lost(f"{answer.status_code} {answer.text}")
            offset = int(answer.headers["Upload-Offset"])
            if offset < self.told:
                raise Lost(f"{self.told} bytes were told of, and then {offset}")
            self.told = offset
            if offset == len(self.content):
                return str(answer.headers["X-File-Id"])

    def _look(self) -> Any:
        return self._ask("HEAD", TUS)

    def _send(self, offset: int) -> Any:
        return self._ask("PATCH", {**STREAM, "Upload-Offset": str(offset)}, data=self.content[offset:])

    def _ask(self, method: str, headers: dict[str, str], **kwargs: Any) -> Any:
        """Return the answer over a connection of its own, None without one."""
        name, _, value = self.authorization.partition(": ")
        url = random.choice(self.roots) + self.path
        try:
            return requests.request(method, url, headers={**headers, name: value}, timeout=_PATIENCE_SECONDS, **kwargs)
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
            return None


def content_of(seed: int, size: int, marker: bytes) -> bytes:
    """Return bytes that are the same for the same seed, with the marker in each 4 KiB."""
    content = bytearray(random.Random(seed).randbytes(size))
    for at in range(0, size - len(marker), 4096):
        content[at : at + len(marker)] = marker
    return bytes(content)


def run_alone(outcome: "Connection", upload: TusUpload) -> None:
    """Run an upload as a process of its own, which can be killed; send the file's id, or what was lost."""
    random.seed()
    try:
        outcome.send(upload.run())
    except Lost as exc:
        outcome.send(exc)
