"""Whatever is accepted at upload can be read back: in JSON, in headers, as bytes; and bodies are closed in any case."""

from collections.abc import Callable
from typing import Any, NoReturn
from urllib.parse import quote

import pytest
from gunicorn.http.wsgi import HEADER_VALUE_RE
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from testing.content import FORM
from testing.vault import FILES, SQLITE, Person, Vault, refusal
from vault.files.names import name_of_raw_body
from vault.files.rest import routes
from vault.observe.metrics import TRANSFERS

pytestmark = [SQLITE, pytest.mark.uncounted]

CONTENT = b"content"
# What a header's value can be made of on the wire: everything but the ends of lines.
BYTES = "".join(chr(code) for code in range(256) if chr(code) not in "\r\n")
PIECES = ["text/plain", "; ", "a=", '"', "\\", "charset=utf-8", "\x01", "\t", "\x7f", "é", "b", ";", " "]


def form(content_type: str, filename: str) -> bytes:
    head = f'Content-Disposition: form-data; name="file"; {filename}\r\nContent-Type: {content_type}'
    return b"--edge\r\n" + head.encode("latin-1") + b"\r\n\r\n" + CONTENT + b"\r\n--edge--\r\n"


def sent_headers(answer: Any) -> dict[str, str]:
    """The answer's headers. Fails where gunicorn would refuse to send one."""
    assert {name for name, value in answer.headers if HEADER_VALUE_RE.fullmatch(value) is None} == set()
    return dict(answer.headers)


types = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=8).map(lambda pieces: "text/plain" + "".join(pieces)),
    st.text(BYTES, max_size=30).map(lambda text: f'text/plain; a="{text}"'),
    st.text(BYTES[:126], max_size=6).map(lambda text: f'text/plain; a="{text}"'),
)
names = st.text(min_size=1, max_size=40).map(
    lambda name: f"filename*=UTF-8''{quote(name.encode(errors='surrogatepass'))}"
)
raw_names = st.text(BYTES, max_size=40).map(lambda text: f'filename="{text}"')


@given(content_type=types, filename=st.one_of(names, raw_names))
@example(content_type='text/plain; a="\x01"', filename='filename="a"')
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_accepted_values_can_be_read_back(vault: Vault, anna: Person, content_type: str, filename: str) -> None:
    answer = anna.post(FILES, data=form(content_type, filename), content_type=FORM)

    if answer.status_code != 201:
        assert refusal(answer) in ((422, "validation_failed"), (400, "malformed_body"))
        return
    file = answer.json
    for method in (anna.get, anna.head):
        content = method(f"{FILES}/{file['id']}/content", buffered=True)
        headers = sent_headers(content)
        assert (content.status_code, headers["Content-Type"]) == (200, file["content_type"])
        assert name_of_raw_body(headers["Content-Disposition"]) == file["name"]
    assert anna.get(f"{FILES}/{file['id']}").json["name"] == file["name"]


# A control character is refused also in a quoted string.
MALFORMED = [f'text/plain; a="{chr(code)}"' for code in [*range(1, 9), 11, 12, *range(14, 32), 127]]
MALFORMED += ["text", "text/plain, text/html", "text/plain; charset=\xc3\xbc", "<script>/x", f"a/{'b' * 300}"]


def test_a_malformed_type_is_refused(vault: Vault, anna: Person) -> None:
    in_form = [anna.post(FILES, data=form(kind, 'filename="a"'), content_type=FORM) for kind in MALFORMED]
    raw = [
        anna.post(FILES, query_string={"name": "a"}, data=b"x", environ_overrides={"CONTENT_TYPE": kind})
        for kind in MALFORMED
    ]

    assert {refusal(answer) for answer in (*in_form, *raw)} == {(422, "validation_failed")}
    assert {tuple(answer.json["errors"]) for answer in (*in_form, *raw)} == {("content_type",)}
    assert vault.leftovers() == {}


def test_a_row_with_such_a_type_from_before_is_a_stream_of_bytes(vault: Vault, anna: Person) -> None:
    file = anna.upload(CONTENT)
    vault.change_file(file["id"], content_type='text/plain; a="\x01"')

    content = anna.get(f"{FILES}/{file['id']}/content", query_string={"disposition": "inline"}, buffered=True)
    facts = anna.get(f"{FILES}/{file['id']}")

    assert (content.status_code, content.data) == (200, CONTENT)
    assert sent_headers(content)["Content-Type"] == facts.json["content_type"] == "application/octet-stream"
    assert content.headers["Content-Disposition"].startswith("attachment")


# Bodies that are closed


def running() -> float:
    return float(TRANSFERS.labels("out")._value.get())


def fail(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("while the answer was being built")


def while_headers_are_made(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes.downloads, "stream", fail)


def after_the_view(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    vault.app.after_request_funcs[None].append(lambda response: fail() if response.is_streamed else response)


def when_the_server_takes_the_headers(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Play gunicorn, which raises in start_response where it cannot send a header."""
    inner = vault.app.wsgi_app
    monkeypatch.setattr(vault.app, "wsgi_app", lambda environ, _start_response: inner(environ, fail))


@pytest.mark.parametrize("breaks", [while_headers_are_made, after_the_view, when_the_server_takes_the_headers])
def test_an_answer_that_fails_ends_its_download(
    vault: Vault, anna: Person, monkeypatch: pytest.MonkeyPatch, breaks: Callable[..., None]
) -> None:
    file, before = anna.upload(CONTENT), running()
    vault.app.testing = False
    breaks(vault, monkeypatch)

    try:
        answer = anna.get(f"{FILES}/{file['id']}/content", buffered=True)
    except RuntimeError:
        assert breaks is when_the_server_takes_the_headers
    else:
        assert answer.status_code == 500

    (started,), (ended,) = (vault.audit_trail(f"file.download_{what}") for what in ("started", "ended"))
    assert (started.target_id, started.outcome) == (ended.target_id, "ok")
    assert (ended.outcome, ended.details["bytes_served"]) == ("failed", 0)
    assert running() == before


def test_an_export_that_fails_while_it_is_answered_is_closed(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    root, opened = vault.member("root@example.org", role="admin"), []
    exports = vault.container.audit.exports
    monkeypatch.setattr(type(exports), "open", lambda *_: opened.append(Closing()) or opened[-1])
    vault.app.testing = False
    after_the_view(vault, monkeypatch)

    answer = root.get("/api/v1/admin/audit/export", query_string={"format": "csv"}, buffered=True)

    assert answer.status_code == 500
    assert [export.is_closed for export in opened] == [True]


class Closing:
    """An export that nothing has read."""

    is_closed = False

    def __iter__(self) -> Any:
        return iter(())

    def close(self) -> None:
        self.is_closed = True
