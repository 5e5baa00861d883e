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

from testing.nginx import Nginx, nginx
from testing.raw import connect, head, upload_regardless
from testing.servers import wait_until
from testing.stack import Client, Stack
from testing.tus import TUS
from testing.tus_client import begin, patch_head
from testing.vault import PASSWORD

MIB = 1024 * 1024
BLOCK = os.urandom(MIB)
LARGE = 48
ORIGIN = "https://app.example.org"
SETTINGS = {"TRUSTED_PROXIES": "127.0.0.1", "GRACEFUL_SECONDS": "5", "CORS_ORIGINS": ORIGIN}


@pytest.fixture(scope="module")
def proxy(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    with nginx(stack, tmp_path_factory.mktemp("nginx")) as running:
        yield running


@pytest.fixture(scope="module")
def person(stack: Stack, proxy: Nginx) -> Client:
    return proxy.client(like=stack.sign_up())


@pytest.fixture(scope="module")
def stored(person: Client) -> str:
    """A file of LARGE times the block."""
    return str(person.upload(blocks(LARGE))["id"])


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


class _Sized:
    """A body with a length that is not in memory at once."""

    def __init__(self, count: int) -> None:
        self._pieces, self._size = blocks(count), count * MIB

    def __len__(self) -> int:
        return self._size

    def read(self, _size: int = -1) -> bytes:
        return next(self._pieces, b"")


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(LARGE, id="48 MiB"),
        pytest.param(2048, id="2 GiB", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_files_pass_through_nginx_without_touching_its_disk(proxy: Nginx, person: Client, count: int) -> None:
    before, expected = proxy.written_bytes(), digest_of(blocks(count))

    for body in (_Sized(count), blocks(count)):
        stored = person.upload(body)
        assert stored["sha256"] == expected
        with person.get(f"{proxy.url}/files/{stored['id']}/content", stream=True) as content:
            assert content.status_code == 200
            assert digest_of(content.iter_content(MIB)) == expected
        assert person.delete(f"{proxy.url}/files/{stored['id']}").status_code == 204

    assert not wrote_bodies(proxy)
    assert proxy.written_bytes() - before < MIB


def test_nginx_without_the_two_lines_writes_both_bodies_to_its_disk(
    stack: Stack, person: Client, tmp_path: Path
) -> None:
    with nginx(stack, tmp_path, without="_buffering off;") as careless:
        client = careless.client(like=person)
        stored = client.upload(blocks(LARGE))
        with client.get(f"{careless.url}/files/{stored['id']}/content", stream=True) as content:
            # It takes ahead what the client does not.
            wait_until(lambda: "upstream response is buffered to a temporary file" in careless.error_log)
            assert content.status_code == 200

        assert "client request body is buffered to a temporary file" in careless.error_log
        assert wrote_bodies(careless)
        assert careless.written_bytes() > MIB


def break_off(proxy: Nginx, person: Client) -> int:
    """Break a resumable upload of LARGE MiB off after 32; return how many bytes the API has kept."""
    path = begin(person, proxy.url.removesuffix("/api/v1"), LARGE * MIB, filename="film.mp4")
    with secure(proxy) as connection:
        connection.sendall(patch_head(path, person.authorization, 0, f"Content-Length: {LARGE * MIB}"))
        for block in blocks(32):
            connection.sendall(block)
    answer = person.head(proxy.url.removesuffix("/api/v1") + path, headers=TUS)
    assert answer.status_code == 200, answer.headers
    assert person.delete(proxy.url.removesuffix("/api/v1") + path, headers=TUS).status_code == 204
    return int(answer.headers["Upload-Offset"])


def test_what_nginx_has_passed_on_of_a_resumable_upload_is_kept(
    stack: Stack, proxy: Nginx, person: Client, tmp_path: Path
) -> None:
    # The rest was still in buffers of the system.
    assert break_off(proxy, person) > 4 * MIB
    # One that collects a body passes on nothing of it.
    with nginx(stack, tmp_path, without="_buffering off;") as careless:
        assert break_off(careless, careless.client(like=person)) == 0


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [("0-0", 0, 0), ("1000000-3000000", 1_000_000, 3_000_000), ("-5", LARGE * MIB - 5, LARGE * MIB - 1)],
)
def test_nginx_passes_ranges_on(proxy: Nginx, person: Client, stored: str, wanted: str, first: int, last: int) -> None:
    answer = person.get(f"{proxy.url}/files/{stored}/content", headers={"Range": f"bytes={wanted}"})

    assert answer.status_code == 206
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{LARGE * MIB}"
    assert answer.content == (BLOCK * 4)[first % MIB : first % MIB + last - first + 1]


def test_slow_clients_of_nginx_get_and_send_whole_files(proxy: Nginx, person: Client, stored: str) -> None:
    pause = Event()

    def slowly() -> Iterator[bytes]:
        for block in blocks(10):
            pause.wait(0.2)
            yield block

    with person.get(f"{proxy.url}/files/{stored}/content", stream=True) as content:
        sent = person.upload(slowly(), "slow.bin")
        assert digest_of(content.iter_content(MIB)) == digest_of(blocks(LARGE))

    assert sent["sha256"] == digest_of(blocks(10))
    assert not wrote_bodies(proxy)


def test_an_upload_whose_client_disappears_is_given_up(stack: Stack, proxy: Nginx, person: Client) -> None:
    stack.reap()
    before = stack.objects()
    with secure(proxy) as client:
        lines = (person.authorization, f"Content-Length: {LARGE * MIB}")
        client.sendall(head("POST", "/api/v1/files?name=gone.bin", *lines) + BLOCK)
        wait_until(lambda: "pending" in stack.states(), what="the upload")

    wait_until(lambda: "pending" not in stack.states(), what="the upload being given up")
    stack.reap()
    assert stack.objects() == before


def test_a_download_whose_client_disappears_ends(stack: Stack, proxy: Nginx, person: Client, stored: str) -> None:
    before = ended_downloads(stack)
    with secure(proxy, receive_bytes=4096) as client:
        client.sendall(head("GET", f"/api/v1/files/{stored}/content", person.authorization))
        assert client.recv(12) == b"HTTP/1.1 200"

    wait_until(lambda: ended_downloads(stack) == before + 1, what="the download's end")


def ended_downloads(stack: Stack) -> int:
    return int(stack.sql("SELECT count(*) FROM audit_events WHERE action = 'file.download_ended'")[0][0])


@pytest.fixture
def small_quota(stack: Stack) -> Iterator[None]:
    stack.sql("UPDATE storage_accounts SET quota_bytes = used_bytes + 1000000")
    yield
    stack.sql("UPDATE storage_accounts SET quota_bytes = NULL")


@pytest.mark.parametrize("times", [8, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
@pytest.mark.usefixtures("small_quota")
def test_each_refusal_in_mid_upload_arrives_as_what_it_is(proxy: Nginx, person: Client, times: int) -> None:
    found = []
    for turn in range(times):
        authorization = person.authorization if turn % 2 else "Authorization: Bearer wrong"
        with secure(proxy) as client:
            answer = upload_regardless(client, authorization, BLOCK, LARGE, "raw" if turn % 4 < 2 else "chunked")
        status, _, rest = answer.removeprefix(b"HTTP/1.1 ").partition(b" ")
        body = rest.partition(b"\r\n\r\n")[2]
        found.append((int(status), json.loads(body[body.find(b"{") : body.rfind(b"}") + 1])["code"]))

    assert found == [(401, "unauthorized"), (413, "quota_exceeded")] * (times // 2)


def test_the_address_of_a_session_is_the_clients_and_not_that_of_a_header(
    stack: Stack, proxy: Nginx, person: object
) -> None:
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


def test_the_log_of_nginx_has_neither_query_nor_referer(proxy: Nginx, person: Client) -> None:
    answer = person.get(
        f"https://127.0.0.1:{proxy.port}/verify-email?token=secret-in-query",
        headers={"Referer": "https://secret-in-referer.example/"},
    )
    assert answer.status_code == 200

    wait_until(lambda: answer.headers["X-Request-ID"] in proxy.access_log, what="the line of the log")
    assert '"GET /verify-email HTTP/1.1" 200' in proxy.access_log
    assert "secret-in" not in proxy.access_log
    assert str(person.headers["Authorization"]) not in proxy.access_log


def test_the_longest_name_and_type_fit_into_the_answers_head(proxy: Nginx, person: Client) -> None:
    name, kind = "🐘" * 255, f"application/{'x' * 243}"
    stored = person.post(f"{proxy.url}/files", params={"name": name}, data=b"x", headers={"Content-Type": kind})

    # Together with what each of these adds, it is more than the 4 KiB that nginx has for a head by itself.
    headers = {"Range": "bytes=0-0", "Origin": ORIGIN, "X-Request-ID": "x" * 64}
    answer = person.get(f"{proxy.url}/files/{stored.json()['id']}/content", headers=headers)

    assert (answer.status_code, answer.headers.get("Content-Type")) == (206, kind)


def test_http_is_redirected_to_https(proxy: Nginx) -> None:
    answer = requests.get(f"http://127.0.0.1:{proxy.http_port}/docs", allow_redirects=False, timeout=120)

    assert answer.status_code == 301
    assert answer.headers["Location"] == "https://127.0.0.1/docs"


def test_the_workers_of_nginx_and_of_the_api_outlive_these_tests(stack: Stack, proxy: Nginx) -> None:
    log = stack.processes[0].output

    assert proxy.popen.poll() is None
    assert "exited on signal" not in proxy.error_log
    assert "Traceback" not in log
    assert stack.logged(["example.org", "stored.bin", "slow.bin", "gone.bin"]) == []


def test_compression_for_all_other_sites_leaves_tags_strong_and_digests_true(stack: Stack, tmp_path: Path) -> None:
    content = b"what compresses well " * 10_000
    compress = "gzip on; gzip_types *; gzip_proxied any; gzip_min_length 1; gzip_http_version 1.0;"
    with nginx(stack, tmp_path, beside=compress) as proxy:
        person = proxy.client(like=stack.sign_up("compressed@example.org"))
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
