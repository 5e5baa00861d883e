"""The documented nginx in front of the API: it streams both ways, keeps nothing, and passes on what the API says."""

import base64
import hashlib
import http.client
import json
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
import requests
import sqlalchemy as sa

from testing.nginx import Nginx, nginx
from testing.raw import connect, everything, head
from testing.servers import wait_until
from testing.stack import Stack, embedded
from testing.vault import PASSWORD

pytestmark = pytest.mark.xdist_group("nginx")

MIB = 1024 * 1024
BLOCK = os.urandom(MIB)
LARGE = 48
ORIGIN = "https://app.example.org"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    settings = {"TRUSTED_PROXIES": "127.0.0.1", "GRACEFUL_SECONDS": "5", "CORS_ORIGINS": ORIGIN}
    with embedded(tmp_path_factory.mktemp("behind"), **settings) as running:
        running.start_api()
        yield running


@pytest.fixture(scope="module")
def proxy(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    with nginx(stack, tmp_path_factory.mktemp("nginx")) as running:
        yield running


@pytest.fixture(scope="module")
def person(stack: Stack, proxy: Nginx) -> requests.Session:
    return proxy.session(like=stack.sign_up())


@pytest.fixture(scope="module")
def stored(proxy: Nginx, person: requests.Session) -> str:
    """A file of LARGE times the block."""
    answer = person.post(f"{proxy.url}/files?name=stored.bin", data=blocks(LARGE))
    assert answer.status_code == 201
    return str(answer.json()["id"])


def blocks(count: int) -> Iterator[bytes]:
    yield from (BLOCK for _ in range(count))


def digest_of(pieces: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def secure(proxy: Nginx, *, receive_bytes: int | None = None) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(proxy.certificate))
    return context.wrap_socket(connect(proxy.port, receive_bytes=receive_bytes), server_hostname="127.0.0.1")


def wrote_bodies(proxy: Nginx) -> bool:
    """nginx says so whenever a body goes to a file; the file is gone with the request."""
    return "buffered to a temporary file" in proxy.error_log or any(
        path.is_file() for name in ("bodies", "answers", "other") for path in (proxy.folder / name).rglob("*")
    )


def up_and_down(proxy: Nginx, person: requests.Session, count: int) -> None:
    """Send so many MiB, with a length and chunked, and read each back."""
    expected = digest_of(blocks(count))
    for body in (_Sized(count), blocks(count)):
        answer = person.post(f"{proxy.url}/files?name=large.bin", data=body)
        assert answer.status_code == 201
        assert answer.json()["sha256"] == expected
        with person.get(f"{proxy.url}/files/{answer.json()['id']}/content", stream=True) as content:
            assert content.status_code == 200
            assert digest_of(content.iter_content(MIB)) == expected
        assert person.delete(f"{proxy.url}/files/{answer.json()['id']}").status_code == 204


class _Sized:
    """A body with a length that is not in memory at once."""

    def __init__(self, count: int) -> None:
        self._pieces, self._size = blocks(count), count * MIB

    def __len__(self) -> int:
        return self._size

    def read(self, _size: int = -1) -> bytes:
        return next(self._pieces, b"")


def test_files_go_up_and_down_and_nothing_of_them_to_its_disk(proxy: Nginx, person: requests.Session) -> None:
    before = proxy.written_bytes()

    up_and_down(proxy, person, LARGE)

    assert not wrote_bodies(proxy)
    assert proxy.written_bytes() - before < MIB


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_gib_go_up_and_down_and_nothing_of_them_to_its_disk(proxy: Nginx, person: requests.Session) -> None:
    before = proxy.written_bytes()

    up_and_down(proxy, person, 2048)

    assert not wrote_bodies(proxy)
    assert proxy.written_bytes() - before < MIB


def test_without_the_two_lines_it_would_write_both_bodies_to_its_disk(
    stack: Stack, person: requests.Session, tmp_path: Path
) -> None:
    with nginx(stack, tmp_path, without="_buffering off;") as careless:
        session = careless.session(like=person)
        answer = session.post(f"{careless.url}/files?name=x", data=blocks(LARGE))
        assert answer.status_code == 201
        with session.get(f"{careless.url}/files/{answer.json()['id']}/content", stream=True) as content:
            # It takes ahead what the client does not.
            wait_until(lambda: "upstream response is buffered to a temporary file" in careless.error_log)
            assert content.status_code == 200

        assert "client request body is buffered to a temporary file" in careless.error_log
        assert wrote_bodies(careless)
        assert careless.written_bytes() > MIB


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [("0-0", 0, 0), ("1000000-3000000", 1_000_000, 3_000_000), ("-5", LARGE * MIB - 5, LARGE * MIB - 1)],
)
def test_ranges_come_as_they_are(
    proxy: Nginx, person: requests.Session, stored: str, wanted: str, first: int, last: int
) -> None:
    answer = person.get(f"{proxy.url}/files/{stored}/content", headers={"Range": f"bytes={wanted}"})

    assert answer.status_code == 206
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{LARGE * MIB}"
    assert answer.content == (BLOCK * 4)[first % MIB : first % MIB + last - first + 1]


def test_slow_clients_get_and_send_all_of_it(proxy: Nginx, person: requests.Session, stored: str) -> None:
    pause = Event()

    def slowly() -> Iterator[bytes]:
        for block in blocks(10):
            pause.wait(0.2)
            yield block

    with person.get(f"{proxy.url}/files/{stored}/content", stream=True) as content:
        sent = person.post(f"{proxy.url}/files?name=slow.bin", data=slowly())
        assert digest_of(content.iter_content(MIB)) == digest_of(blocks(LARGE))

    assert sent.status_code == 201
    assert sent.json()["sha256"] == digest_of(blocks(10))
    assert not wrote_bodies(proxy)


def test_an_upload_whose_client_disappears_is_given_up(stack: Stack, proxy: Nginx, person: requests.Session) -> None:
    stack.reap()
    before = stack.objects()
    with secure(proxy) as client:
        client.sendall(
            head("POST", "/api/v1/files?name=gone.bin", bearer(person), f"Content-Length: {LARGE * MIB}") + BLOCK
        )
        wait_until(lambda: "pending" in stack.states(), what="the upload")

    wait_until(lambda: "pending" not in stack.states(), what="the upload being given up")
    stack.reap()
    assert stack.objects() == before


def test_a_download_whose_client_disappears_ends(
    stack: Stack, proxy: Nginx, person: requests.Session, stored: str
) -> None:
    before = ended_downloads(stack)
    with secure(proxy, receive_bytes=4096) as client:
        client.sendall(head("GET", f"/api/v1/files/{stored}/content", bearer(person)))
        assert client.recv(12) == b"HTTP/1.1 200"

    wait_until(lambda: ended_downloads(stack) == before + 1, what="the download's end")


def ended_downloads(stack: Stack) -> int:
    with stack.container.core.engine.begin() as connection:
        query = "SELECT count(*) FROM audit_events WHERE action = 'file.download_ended'"
        return int(connection.scalar(sa.text(query)) or 0)


def bearer(person: requests.Session) -> str:
    return f"Authorization: {person.headers['Authorization']!s}"


def refused(proxy: Nginx, authorization: str, framing: str) -> bytes:
    """Send everything to the last byte, and read only then."""
    length = f"Content-Length: {LARGE * MIB}" if framing == "raw" else "Transfer-Encoding: chunked"
    block = BLOCK if framing == "raw" else b"%x\r\n%s\r\n" % (MIB, BLOCK)
    with secure(proxy) as client:
        client.sendall(head("POST", "/api/v1/files?name=x", authorization, length))
        for _ in range(LARGE):
            client.sendall(block)
        return everything(client)


def refusals(stack: Stack, proxy: Nginx, person: requests.Session, times: int) -> list[tuple[int, str]]:
    """What so many uploads are told that have no token, or a quota that is too small."""
    with stack.container.core.engine.begin() as connection:
        connection.execute(sa.text("UPDATE storage_accounts SET quota_bytes = used_bytes + 1000000"))
    found = []
    try:
        for turn in range(times):
            authorization = bearer(person) if turn % 2 else "Authorization: Bearer wrong"
            answer = refused(proxy, authorization, "raw" if turn % 4 < 2 else "chunked")
            status, _, rest = answer.removeprefix(b"HTTP/1.1 ").partition(b" ")
            body = rest.partition(b"\r\n\r\n")[2]
            found.append((int(status), json.loads(body[body.find(b"{") : body.rfind(b"}") + 1])["code"]))
    finally:
        with stack.container.core.engine.begin() as connection:
            connection.execute(sa.text("UPDATE storage_accounts SET quota_bytes = NULL"))
    return found


EXPECTED = [(401, "unauthorized"), (413, "quota_exceeded")]


def test_refusals_in_mid_upload_arrive_as_what_they_are(stack: Stack, proxy: Nginx, person: requests.Session) -> None:
    assert refusals(stack, proxy, person, 8) == EXPECTED * 4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fifty_refusals_of_fifty_arrive_as_what_they_are(stack: Stack, proxy: Nginx, person: requests.Session) -> None:
    assert refusals(stack, proxy, person, 50) == EXPECTED * 25


def test_the_address_is_the_clients_and_not_what_it_says_it_is(stack: Stack, proxy: Nginx, person: object) -> None:
    context = ssl.create_default_context(cafile=str(proxy.certificate))
    client = http.client.HTTPSConnection(
        "127.0.0.1", proxy.port, context=context, source_address=("127.0.0.2", 0), timeout=120
    )
    lie = {"X-Forwarded-For": "203.0.113.9"}

    client.request(
        "POST",
        "/api/v1/auth/login",
        body=json.dumps({"email": "anna@example.org", "password": PASSWORD}),
        headers={"Content-Type": "application/json", **lie},
    )
    token = json.loads(client.getresponse().read())["access_token"]
    client.request("GET", "/api/v1/auth/sessions", headers={"Authorization": f"Bearer {token}", **lie})
    sessions = json.loads(client.getresponse().read())["items"]
    client.close()

    assert [session["ip"] for session in sessions if session["current"]] == ["127.0.0.2"]


def test_its_log_has_neither_query_nor_referer(proxy: Nginx, person: requests.Session) -> None:
    answer = person.get(
        f"https://127.0.0.1:{proxy.port}/verify-email?token=secret-in-query",
        headers={"Referer": "https://secret-in-referer.example/"},
    )
    assert answer.status_code == 200

    wait_until(lambda: answer.headers["X-Request-ID"] in proxy.access_log, what="the line of the log")
    assert '"GET /verify-email HTTP/1.1" 200' in proxy.access_log
    assert "secret-in" not in proxy.access_log
    assert str(person.headers["Authorization"]) not in proxy.access_log


def test_the_longest_name_and_type_fit_into_the_answers_head(proxy: Nginx, person: requests.Session) -> None:
    name, kind = "🐘" * 255, f"application/{'x' * 243}"
    stored = person.post(f"{proxy.url}/files", params={"name": name}, data=b"x", headers={"Content-Type": kind})

    # Together with what each of these adds, it is more than the 4 KiB that nginx has for a head by itself.
    headers = {"Range": "bytes=0-0", "Origin": ORIGIN, "X-Request-ID": "x" * 64}
    answer = person.get(f"{proxy.url}/files/{stored.json()['id']}/content", headers=headers)

    assert (answer.status_code, answer.headers.get("Content-Type")) == (206, kind)


def test_without_tls_there_is_only_the_way_to_it(proxy: Nginx) -> None:
    answer = requests.get(f"http://127.0.0.1:{proxy.http_port}/docs", allow_redirects=False, timeout=120)

    assert answer.status_code == 301
    assert answer.headers["Location"] == "https://127.0.0.1/docs"


def test_its_workers_and_the_apis_outlive_all_of_this(stack: Stack, proxy: Nginx) -> None:
    log = stack.processes[0].output

    assert proxy.popen.poll() is None
    assert "exited on signal" not in proxy.error_log
    assert "Traceback" not in log
    assert stack.logged(["example.org", "stored.bin", "slow.bin", "gone.bin"]) == []


def test_compression_for_all_other_sites_leaves_tags_strong_and_digests_true(stack: Stack, tmp_path: Path) -> None:
    content = b"what compresses well " * 10_000
    compress = "gzip on; gzip_types *; gzip_proxied any; gzip_min_length 1; gzip_http_version 1.0;"
    with nginx(stack, tmp_path, beside=compress) as proxy:
        person = proxy.session(like=stack.sign_up("compressed@example.org"))
        text = {"Content-Type": "text/plain"}
        stored = person.post(f"{proxy.url}/files?name=a.txt", data=content, headers=text, timeout=60).json()
        address = f"{proxy.url}/files/{stored['id']}"
        encoded = {"Accept-Encoding": "gzip, br"}

        with person.get(f"{address}/content", headers=encoded, stream=True, timeout=60) as answer:
            received = answer.raw.read(decode_content=False)
        facts = person.get(address, headers=encoded, timeout=60)
        tag = answer.headers["ETag"]
        again = person.get(f"{address}/content", headers={**encoded, "If-Match": tag}, timeout=60)
        renamed = person.patch(
            address, json={"name": "b.txt"}, headers={**encoded, "If-Match": facts.headers["ETag"]}, timeout=60
        )

    digest = base64.b64encode(hashlib.sha256(received).digest()).decode()
    assert received == content
    assert answer.headers["Repr-Digest"] == f"sha-256=:{digest}:"
    assert (tag, answer.headers.get("Content-Encoding")) == (f'"{stored["etag"]}"', None)
    assert "no-transform" in answer.headers["Cache-Control"]
    assert [again.status_code, renamed.status_code] == [200, 200]
