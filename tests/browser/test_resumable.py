"""Resumable uploads from pages of another origin in Chromium, by the code of docs/api/resumable.md."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from selenium import webdriver

from testing.browser import chromium, site
from testing.proxy import Proxy
from testing.resumable import EDGES, LARGE, PART, SEGMENT, Line, assert_stored, count_uploads, make_file
from testing.servers import wait_until
from testing.stack import QUICK_PASSWORDS, Client, Stack, embedded
from testing.tools import node_clients
from vault.settings.config import ROOT

# A module of the page by its first line, which names it
_BLOCK: Final = re.compile(r"^```js\n// (?P<name>\w+\.js)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
SETTINGS: Final = {"WEB_WORKERS": "1", **QUICK_PASSWORDS}
PAGE: Final = """
import { Upload } from 'tus-js-client'
import { Session } from './session.js'
import { send } from './send.js'
import { uploader } from './uploader.js'
Object.assign(window, { Upload, Session, send, uploader })

// Of a file beside this page. Its time stays, so that it is the same file on the next page.
window.open_file = async (name) => {
  const answer = await fetch(encodeURIComponent(name))
  return new File([await answer.blob()], name, { type: 'image/x-raw', lastModified: 1700000000000 })
}
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the document's modules, and of the page's own."""
    folder = tmp_path_factory.mktemp("sources")
    found = _BLOCK.finditer((ROOT / "docs/api/resumable.md").read_text())
    modules = {block["name"]: block["text"] for block in found}
    assert modules.keys() == {"session.js", "send.js", "uploader.js"}
    for name, text in {**modules, "page.js": PAGE}.items():
        (folder / name).write_text(text)
    return folder


def bundle(sources: Path, site_folder: Path, page: str, *options: str) -> None:
    """Make a page of the sources and the packages that they import."""
    packages = node_clients()
    command = [str(packages / ".bin/esbuild"), "page.js", "--bundle", "--log-level=warning", *options]
    environ = {**os.environ, "NODE_PATH": str(packages)}
    subprocess.run([*command, f"--outfile={site_folder}/{page}.js"], cwd=sources, env=environ, check=True, timeout=60)
    text = f"<!DOCTYPE html><meta charset=utf-8><title>Uploads</title><script src={page}.js></script>"
    (site_folder / f"{page}.html").write_text(text)


@pytest.fixture(scope="module")
def folder(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with a page of the document's code, and files to send."""
    folder = tmp_path_factory.mktemp("site")
    bundle(sources, folder, "index")
    return folder


@pytest.fixture(scope="module", params=["index", "5"])
def release(request: pytest.FixtureRequest, sources: Path, folder: Path) -> str:
    """The page with each release of tus-js-client."""
    if request.param == "5":
        bundle(sources, folder, "5", "--alias:tus-js-client=tus-js-client-5")
    return str(request.param)


@pytest.fixture(scope="module")
def origin(folder: Path) -> Iterator[str]:
    with site(folder) as origin:
        yield origin


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, origin: str) -> Iterator[Stack]:
    with embedded(tmp_path_factory.mktemp("stack"), **{**SETTINGS, "CORS_ORIGINS": origin}) as stack:
        stack.start_api()
        yield stack


@pytest.fixture(scope="module")
def person(stack: Stack) -> Client:
    return stack.sign_up()


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with chromium() as driver:
        driver.set_script_timeout(300)
        yield driver


class Page:
    """A page that is signed in to the API at a URL, which may lead through a proxy."""

    def __init__(self, browser: webdriver.Chrome, stack: Stack, address: str, root: str) -> None:
        self._browser, self._person = browser, stack.sign_in()
        browser.get(address)
        # The page has no access token: it has to renew its session before its first request.
        pair = {"access_token": "none", "refresh_token": self._person.refresh_token, "expires_in": 0}
        browser.execute_script("window.session = new Session(...arguments)", f"{root}/api/v1", pair)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of an asynchronous function of `given`; return its result."""
        call = f"(async (given) => {{ {script} }})([...arguments].slice(0, -1))"
        ended = f"{call}.then((value) => end({{ value }}), (error) => end({{ error: String(error) }}))"
        result = self._browser.execute_async_script(f"const end = arguments[arguments.length - 1]; {ended}", *arguments)
        assert "error" not in result, result
        return result["value"]

    def send(self, sent: Path, **options: Any) -> str:
        """Send a file by the document's function; return the stored file's id."""
        return str(self.run("return await send(await open_file(given[0]), session, given[1])", sent.name, options))


@pytest.fixture
def page(browser: webdriver.Chrome, stack: Stack, origin: str, person: Client) -> Page:
    return Page(browser, stack, f"{origin}/index.html", stack.root)


# The document's code


@pytest.mark.parametrize("size", [0, 1, PART + 1])
def test_a_file_of_the_page_is_stored(page: Page, person: Client, folder: Path, size: int) -> None:
    sent = make_file(folder, size)

    facts = assert_stored(person, page.send(sent), sent)

    assert (facts["name"], facts["content_type"]) == (sent.name, "image/x-raw")
    assert facts["modified_at"] == "2023-11-14T22:13:20+00:00"


def test_the_same_file_is_stored_again_and_in_another_folder(page: Page, person: Client, folder: Path) -> None:
    sent = make_file(folder, SEGMENT)
    other = person.post(f"{person.url}/folders", json={"name": "Other", "parent_id": "root"}, timeout=60).json()["id"]

    ids = [page.send(sent), page.send(sent), page.send(sent, folderId=other)]

    names = [assert_stored(person, file_id, sent)["name"] for file_id in ids]
    assert names == [sent.name, f"{sent.stem} (2).bin", sent.name]


UPLOAD_BY_UPPY: Final = """
const uppy = uploader(session)
const stored = []
uppy.on('upload-success', (file, answer) => {
    stored.push([file.name, answer.body.xhr.getResponseHeader('X-File-Id')])
})
for (const name of given) {
    const file = await open_file(name)
    uppy.addFile({ name, type: file.type, data: file })
}
const done = await uppy.upload()
uppy.destroy()
return [stored, done.failed.map((file) => file.error)]
"""


def test_uppy_stores_files_side_by_side_and_again(page: Page, person: Client, folder: Path) -> None:
    sent = {path.name: path for path in (make_file(folder, size) for size in (0, 1, SEGMENT + 1, PART - 1, PART + 1))}

    for _ in range(2):
        stored, failed = page.run(UPLOAD_BY_UPPY, *sent)

        assert failed == []
        assert {name for name, _ in stored} == sent.keys()
        for name, file_id in stored:
            assert_stored(person, file_id, sent[name])


def test_the_next_page_goes_on_where_the_last_one_stopped(
    browser: webdriver.Chrome, stack: Stack, origin: str, person: Client, folder: Path
) -> None:
    sent, address, before = make_file(folder, 3 * PART), f"{origin}/index.html", count_uploads(stack)

    with Line(stack, Proxy.hang) as line:
        Page(browser, stack, address, line.url).run(
            "open_file(given[0]).then((file) => send(file, session)); return null", sent.name
        )
        wait_until(lambda: line.has_happened, seconds=60, what="the amount of bytes")
        browser.get("about:blank")
        line.restore()
        file_id = Page(browser, stack, address, line.url).send(sent)

    assert_stored(person, file_id, sent)
    # Chromium itself may repeat a request whose connection was reset: tus-js-client learns of the 409.
    assert line.offsets[0] == 0
    assert line.offsets[-1] > 0
    assert count_uploads(stack) == before + 1


def test_a_broken_line_and_the_502_of_a_proxy_cost_nothing_that_arrived(
    browser: webdriver.Chrome, stack: Stack, origin: str, person: Client, folder: Path
) -> None:
    sent, before = make_file(folder, 3 * PART), count_uploads(stack)
    refusal = f"HTTP/1.1 502 Bad Gateway\r\nAccess-Control-Allow-Origin: {origin}\r\nConnection: close\r\n\r\n"

    with Line(stack, Proxy.cut) as line:
        refused = line.when(b"^HEAD /api/v1/uploads/", act=refusal.encode())
        file_id = Page(browser, stack, f"{origin}/index.html", line.url).send(sent)

    assert_stored(person, file_id, sent)
    assert refused.happened == 1
    # Chromium itself may repeat a request whose connection was reset: tus-js-client learns of the 409.
    assert line.offsets[0] == 0
    assert line.offsets[-1] > 0
    assert count_uploads(stack) == before + 1


# Every size, in every way


UPLOAD: Final = """
const [names, release, options] = given
// The next release takes the stream itself.
const streamed = (stream) => release === '5' ? stream : stream.getReader()
const done = []
for (const name of names) {
    const file = await open_file(name)
    const metadata = { filename: name, filetype: file.type }
    const headers = { Authorization: `Bearer ${await session.token()}` }
    done.push([name, await new Promise((resolve, reject) => {
        const onSuccess = ({ lastResponse }) => resolve(lastResponse.getHeader('X-File-Id'))
        const endpoint = `${session.vault}/uploads`
        const source = options.stream ? streamed(file.stream()) : file
        const upload = new Upload(source, {
            ...options, endpoint, headers, metadata, onSuccess, onError: reject, storeFingerprintForResuming: false,
        })
        upload.start()
    })])
}
return done
"""
CHUNK: Final = 3_000_000
WAYS: Final[dict[str, dict[str, Any]]] = {
    "chunked": {"chunkSize": CHUNK},
    "at-creation": {"chunkSize": CHUNK, "uploadDataDuringCreation": True},
    "deferred": {"chunkSize": CHUNK, "uploadLengthDeferred": True, "stream": True},
    "by-post": {"overridePatchMethod": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_releases_of_tus_js_client_upload_every_size_in_every_way(
    browser: webdriver.Chrome, stack: Stack, origin: str, person: Client, folder: Path, release: str, way: str
) -> None:
    # At an empty stream 5.0.0-pre2 fails itself.
    sizes = EDGES[1:] if (release, way) == ("5", "deferred") else EDGES
    sent = {path.name: path for path in (make_file(folder, size) for size in (*sizes, LARGE))}

    for name, file_id in Page(browser, stack, f"{origin}/{release}.html", stack.root).run(
        UPLOAD, list(sent), release, WAYS[way]
    ):
        assert_stored(person, file_id, sent.pop(name))

    assert sent == {}


@pytest.mark.slow
def test_uppy_and_the_document_store_200_mib(page: Page, person: Client, folder: Path) -> None:
    sent = make_file(folder, LARGE)

    [[_, by_uppy]], failed = page.run(UPLOAD_BY_UPPY, sent.name)

    assert failed == []
    assert_stored(person, by_uppy, sent)
    assert_stored(person, page.send(sent), sent)


@pytest.mark.slow
def test_releases_of_tus_js_client_serve_the_documents_code(
    browser: webdriver.Chrome, stack: Stack, origin: str, person: Client, folder: Path, release: str
) -> None:
    sent = make_file(folder, PART + 1)

    assert_stored(person, Page(browser, stack, f"{origin}/{release}.html", stack.root).send(sent), sent)
