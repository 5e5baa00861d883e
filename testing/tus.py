"""Requests of resumable uploads (tus 1.0), as a client makes them."""

import base64
import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from testing.vault import Body, Person
from vault.encryption.header import HEADER_SIZE, Suite
from vault.resumable.models import ResumableUpload

UPLOADS = "/api/v1/uploads"
TUS = {"Tus-Resumable": "1.0.0"}
STREAM = {**TUS, "Content-Type": "application/offset+octet-stream"}
# Parts of one segment, and the plaintext that fills the first one and each other
SMALL_PART = 2**18
NEXT_PART = SMALL_PART - Suite.AES_256_EAX.overhead
FIRST_PART = NEXT_PART - HEADER_SIZE


def encoded(value: bytes | str) -> str:
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


def metadata(**values: bytes | str) -> str:
    """Return Upload-Metadata with these values."""
    return ",".join(f"{key} {encoded(value)}" for key, value in values.items())


def checksum(content: bytes, algorithm: str = "sha256") -> dict[str, str]:
    return {"Upload-Checksum": f"{algorithm} {encoded(hashlib.new(algorithm, content).digest())}"}


def create(person: Person, length: int | None, *, headers: Mapping[str, str] | None = None, **kwargs: Any) -> Any:
    """Ask for an upload of this length, None if it is deferred; return the answer."""
    size = {"Upload-Defer-Length": "1"} if length is None else {"Upload-Length": str(length)}
    said = {"Upload-Metadata": metadata(filename="notes.txt")}
    return person.post(UPLOADS, headers={**TUS, **size, **said, **(headers or {})}, **kwargs)


@dataclass(frozen=True, eq=False)
class Upload:
    """An upload of a person, at its path."""

    person: Person
    where: str

    @classmethod
    def begin(cls, person: Person, length: int | None, *, part_size: int = SMALL_PART, **values: str) -> "Upload":
        """Begin an upload with parts of this size, the least by default, and with metadata."""
        answer = create(person, length, headers={"Upload-Metadata": metadata(**{"filename": "notes.txt", **values})})
        assert answer.status_code == 201, answer.text
        upload = cls(person, answer.headers["Location"])
        upload.change(part_size=part_size)
        return upload

    def at(self, person: Person) -> "Upload":
        """Return the same upload for another person, or for the same one at a restarted installation."""
        return Upload(person, self.where)

    @property
    def id(self) -> uuid.UUID:
        return uuid.UUID(self.where.rpartition("/")[2])

    @property
    def row(self) -> Any:
        """The upload's row; None without one."""
        return self.person.vault.scalar(sa.select(ResumableUpload).where(ResumableUpload.id == self.id))

    @property
    def offset(self) -> int:
        """The offset that HEAD tells."""
        answer = self.head()
        assert answer.status_code == 200, answer.headers
        return int(answer.headers["Upload-Offset"])

    def change(self, **columns: Any) -> None:
        """Change the row."""
        self.person.vault.execute(sa.update(ResumableUpload).where(ResumableUpload.id == self.id).values(columns))

    def end_lease(self) -> None:
        """Let the time of a request that died pass."""
        self.change(lease_until=None)

    def head(self, headers: Mapping[str, str] | None = None) -> Any:
        self._let_ask()
        return self.person.head(self.where, headers=headers)

    def patch(self, content: bytes, offset: object, headers: Mapping[str, str] | None = None, **kwargs: Any) -> Any:
        """Go on with these bytes at this offset; return the answer."""
        self._let_ask()
        sent = {**STREAM, "Upload-Offset": str(offset), **(headers or {})}
        return self.person.patch(self.where, data=content, headers=sent, **kwargs)

    def break_off(self, content: bytes, offset: int, *, declared: int) -> Any:
        """Begin a body of the declared length that ends after this content; return the answer."""
        self._let_ask()
        environ = {"wsgi.input": Body(content), "CONTENT_LENGTH": str(declared), "CONTENT_TYPE": STREAM["Content-Type"]}
        return self.person.patch(self.where, headers={**TUS, "Upload-Offset": str(offset)}, environ_overrides=environ)

    def send(self, content: bytes, *, step: int | None = None, offset: int = 0) -> Any:
        """Send everything from this offset on in bodies of `step` bytes; return the last answer."""
        answer = None
        while answer is None or offset < len(content):
            piece = content[offset : offset + (step or len(content))]
            answer = self.patch(piece, offset)
            assert answer.status_code == 204, answer.text
            offset += len(piece)
            assert answer.headers["Upload-Offset"] == str(offset)
        return answer

    def delete(self) -> Any:
        self._let_ask()
        return self.person.delete(self.where, headers=TUS)

    def file_id(self) -> str:
        """Return the file that the upload has become."""
        answer = self.head()
        assert answer.status_code == 200, answer.headers
        return str(answer.headers["X-File-Id"])

    def _let_ask(self) -> None:
        """Forget the requests of this second: a test sends more than a client may."""
        self.person.vault.container.resumable.rate.storage.reset()
