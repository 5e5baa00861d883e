"""An S3 that answers as a test says."""

import threading
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from testing.recorder import Asked, Recorder
from vault.core.aws_access import AwsAccess
from vault.storage import object_key
from vault.storage.s3_client import S3Options

BUCKET: Final = "vault-tests"
SECRET: Final = "secret-of-the-tests"


@dataclass(frozen=True)
class Request:
    method: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def operation(self) -> str:
        """What S3 calls a request like this."""
        if self.method == "GET" and not self.key:
            return "ListMultipartUploads" if "uploads" in self.query else "ListObjectsV2"
        kind = next((name for name in ("partNumber", "uploads", "uploadId") if name in self.query), "")
        return {
            ("PUT", ""): "PutObject",
            ("PUT", "partNumber"): "UploadPart",
            ("POST", "uploads"): "CreateMultipartUpload",
            ("POST", "uploadId"): "CompleteMultipartUpload",
            ("DELETE", ""): "DeleteObject",
            ("DELETE", "uploadId"): "AbortMultipartUpload",
            ("GET", ""): "GetObject",
        }[self.method, kind]


@dataclass(frozen=True)
class Answer:
    """`cut` bytes of the body are announced and not sent; then the connection ends, or stays open if `stalls`."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = 0
    stalls: bool = False

    def sent(self) -> tuple[int, bytes, dict[str, str]]:
        announced = {"Content-Length": str(len(self.body) + self.cut)}
        ending = {"Connection": "close"} if self.cut and not self.stalls else {}
        return self.status, self.body, self.headers | announced | ending


def refusal(status: int, code: str) -> Answer:
    return Answer(status, f"<Error><Code>{code}</Code><Message>about {object_key.__name__}</Message></Error>".encode())


def created(upload_id: str = "an-upload") -> Answer:
    return Answer(200, f"<Result><UploadId>{upload_id}</UploadId></Result>".encode())


def ranged(body: bytes, content_range: str, *, etag: str = '"an-etag"', **kwargs: Any) -> Answer:
    return Answer(206, body, {"Content-Range": content_range, "ETag": etag}, **kwargs)


HUNG_UP = Answer()  # the connection ends without any answer
PART_STORED = Answer(200, headers={"ETag": '"of-a-part"'})
COMPLETED = Answer(200, b"<Result><ETag>of-all</ETag></Result>")
NO_UPLOADS = Answer(200, b"<Result></Result>")


def uploads(*keys: str, ids: Sequence[str] | None = None, more: str = "") -> Answer:
    entries = "".join(
        f"<Upload><Key>{key}</Key><UploadId>{upload_id}</UploadId></Upload>"
        for key, upload_id in zip(keys, ids or [f"id-of-{key}" for key in keys], strict=True)
    )
    page = f"<IsTruncated>true</IsTruncated><NextKeyMarker>{more}</NextKeyMarker>" if more else ""
    return Answer(200, f"<Result>{page}{entries}</Result>".encode())


class ScriptedS3:
    """Answers each operation as a test says, on a server of HTTP, and remembers what it was asked.

    A script is the answer to an operation, a list of answers in turn of which the last stays, or a function.
    """

    def __init__(self, server: Recorder) -> None:
        """Begin with a script by which every operation succeeds on an empty bucket."""
        server.answer = self._answer
        self.options = S3Options(BUCKET, "us-east-1", server.url, AwsAccess("an-access-key", SECRET))
        self.requests: list[Request] = []
        self.script: dict[str, Answer | list[Answer] | Callable[[Request], Answer]] = {
            "CreateMultipartUpload": created(),
            "UploadPart": PART_STORED,
            "CompleteMultipartUpload": COMPLETED,
            "AbortMultipartUpload": Answer(204),
            "ListMultipartUploads": NO_UPLOADS,
        }
        self._lock = threading.Lock()

    @property
    def operations(self) -> list[str]:
        return [request.operation for request in self.requests]

    def _answer(self, asked: Asked) -> tuple[int, bytes, dict[str, str]]:
        address = urllib.parse.urlsplit(asked.path)
        query = dict(urllib.parse.parse_qsl(address.query, keep_blank_values=True))
        key = urllib.parse.unquote(address.path).removeprefix(f"/{BUCKET}").removeprefix("/")
        request = Request(asked.method, key, query, asked.headers, asked.body)
        with self._lock:
            self.requests.append(request)
            script = self.script.get(request.operation, Answer(200))
            if isinstance(script, list):
                script = script.pop(0) if len(script) > 1 else script[0]
        answer = script if isinstance(script, Answer) else script(request)
        if answer is HUNG_UP:
            raise ConnectionError
        return answer.sent()
