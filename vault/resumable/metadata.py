"""Upload-Metadata (tus 1.0, "Creation"): what a client says of its file. Unknown keys are kept and say nothing here."""

import base64
import binascii
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Self

from vault.core.errors import BadUploadHeader, InputRefused
from vault.files.names import DEFAULT_CONTENT_TYPE, clean_content_type, clean_name
from vault.files.placing import OnConflict
from vault.files.upload import Destination

_KEY: Final = re.compile(r"[!-+\--~]+")
_SHA256: Final = re.compile("[0-9a-fA-F]{64}")
_ROOT: Final = "root"


@dataclass(frozen=True, slots=True, repr=False)
class Metadata:
    """`header` is as the client sent it; `sha256` is what the content must have."""

    header: str
    name: str
    content_type: str
    destination: Destination
    modified_at: datetime | None
    sha256: bytes | None

    @classmethod
    def parse(cls, header: str) -> Self:
        """Read the header. Raises BadUploadHeader for what is not the header's form, InputRefused for bad values."""
        values = _values(header)
        texts = {name: _text(name, values[name]) for name in _KNOWN if name in values}
        if not texts.get("filename"):
            raise InputRefused({"filename": ["Give the file's name in Upload-Metadata."]})
        return cls(
            header,
            _named("filename", clean_name, texts["filename"]),
            _named("filetype", clean_content_type, texts.get("filetype") or DEFAULT_CONTENT_TYPE),
            Destination(
                _folder_id(texts.get("folder_id") or _ROOT), _on_conflict(texts.get("on_conflict") or OnConflict.RENAME)
            ),
            _moment(texts["modified_at"]) if texts.get("modified_at") else None,
            _digest(texts["sha256"]) if texts.get("sha256") else None,
        )


_KNOWN: Final = ("filename", "filetype", "folder_id", "on_conflict", "modified_at", "sha256")


def _values(header: str) -> Mapping[str, bytes]:
    values: dict[str, bytes] = {}
    for pair in header.split(",") if header.strip() else ():
        key, _, encoded = pair.strip().partition(" ")
        if not _KEY.fullmatch(key) or key in values:
            raise BadUploadHeader("Upload-Metadata must have different keys of ASCII characters.")
        try:
            values[key] = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            raise BadUploadHeader("Upload-Metadata must have values in base64.") from None
    return values


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InputRefused({name: ["Is not valid UTF-8."]}) from None


def _named(field: str, clean: Callable[[str], str], text: str) -> str:
    try:
        return clean(text)
    except InputRefused as exc:
        raise InputRefused({field: next(iter(exc.errors.values()))}) from None


def _folder_id(text: str) -> uuid.UUID | None:
    if text == _ROOT:
        return None
    try:
        return uuid.UUID(text)
    except ValueError:
        raise InputRefused({"folder_id": ["Not a valid UUID."]}) from None


def _on_conflict(text: str) -> OnConflict:
    try:
        return OnConflict(text)
    except ValueError:
        raise InputRefused({"on_conflict": [f"Must be one of: {', '.join(OnConflict)}."]}) from None


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InputRefused({"modified_at": ["Must be a time with its zone, as in RFC 3339."]}) from None


def _digest(text: str) -> bytes:
    if not _SHA256.fullmatch(text):
        raise InputRefused({"sha256": ["Must be 64 hexadecimal digits."]})
    return bytes.fromhex(text)
