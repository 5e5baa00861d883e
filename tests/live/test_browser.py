"""Chromium with the running API: the documentation at /docs, and a page of another origin."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import requests
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.browser import chromium
from tests.support.servers import wait_until
from tests.support.stack import Stack, embedded

SIZE = 700_001


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@contextmanager
def site(folder: Path) -> Iterator[str]:
    """The origin of a site that serves an empty page."""
    (folder / "index.html").write_text("<!DOCTYPE html><title>Another site</title>")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def other_origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with site(tmp_path_factory.mktemp("site")) as origin:
        yield origin


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, other_origin: str) -> Iterator[Stack]:
    with embedded(tmp_path_factory.mktemp("browser"), CORS_ORIGINS=other_origin) as running:
        running.start_api()
        yield running


@pytest.fixture(scope="module")
def anna(stack: Stack) -> requests.Session:
    return stack.sign_up()


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads: Path) -> Iterator[webdriver.Chrome]:
    with chromium(downloads) as driver:
        yield driver


# The documentation


def bearer_of(person: requests.Session) -> str:
    return str(person.headers["Authorization"]).removeprefix("Bearer ")


def shown(browser: webdriver.Chrome, where: webdriver.Chrome | WebElement, selector: str) -> WebElement:
    """The first element for a selector, as soon as the page has one that can be seen."""
    found = WebDriverWait(browser, 10).until(
        lambda _: [element for element in where.find_elements(By.CSS_SELECTOR, selector) if element.is_displayed()]
    )
    return found[0]


def open_to_try(browser: webdriver.Chrome, operation: str) -> WebElement:
    block = shown(browser, browser, f"[id='operations-files-{operation}']")
    shown(browser, block, ".opblock-summary-control").click()
    shown(browser, block, ".try-out__btn").click()
    return block


def execute(browser: webdriver.Chrome, block: WebElement) -> str:
    """Press the button and return the status that the page shows for the answer."""
    shown(browser, block, ".btn.execute").click()
    return shown(browser, block, ".live-responses-table .response .response-col_status").text.split()[0]


def test_the_documentation_authorises_uploads_and_downloads_with_nothing_from_elsewhere(
    stack: Stack, anna: requests.Session, browser: webdriver.Chrome, downloads: Path, tmp_path: Path
) -> None:
    sent = tmp_path / "sent.bin"
    sent.write_bytes(os.urandom(SIZE))
    browser.get(f"{stack.env['PUBLIC_URL']}/docs")

    shown(browser, browser, ".btn.authorize").click()
    shown(browser, browser, ".auth-container input").send_keys(bearer_of(anna))
    shown(browser, browser, ".auth-btn-wrapper .authorize").click()
    shown(browser, browser, ".auth-btn-wrapper .btn-done").click()
    upload = open_to_try(browser, "post_api_v1_files")
    upload.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(sent))
    uploaded = execute(browser, upload)
    stored = anna.get(f"{stack.url}/files", timeout=120).json()["items"][0]
    download = open_to_try(browser, "get_api_v1_files__file_id__content")
    shown(browser, download, "tr[data-param-name=file_id] input").send_keys(stored["id"])
    downloaded = execute(browser, download)
    shown(browser, download, ".live-responses-table a[download]").click()

    received = downloads / "sent.bin"
    wait_until(received.exists, what="the download")
    assert (uploaded, downloaded) == ("201", "200")
    assert received.read_bytes() == sent.read_bytes()
    # Whatever the page's policy had refused, or was not found, would stand here.
    assert browser.get_log("browser") == []


# A page of another origin

UPLOAD_AND_DOWNLOAD = """
const [url, token] = arguments;
const bearer = {Authorization: token};
const headers = {...bearer, "Content-Type": "text/plain", "Content-Disposition": "attachment; filename=a.txt"};
return (async () => {
    try {
        const stored = await fetch(url, {method: "POST", headers, body: "from another page"});
        const file = await stored.json();
        const answer = await fetch(url + "/" + file.id + "/content", {headers: {...bearer, Range: "bytes=5-11"}});
        return [stored.status, stored.headers.get("Location"), file.name, answer.status,
                answer.headers.get("Content-Range"), await answer.text()];
    } catch (error) {
        return [error.name];
    }
})();
"""


def test_a_page_of_a_listed_origin_uploads_and_downloads(
    stack: Stack, anna: requests.Session, browser: webdriver.Chrome, other_origin: str
) -> None:
    browser.get(other_origin)

    done = browser.execute_script(UPLOAD_AND_DOWNLOAD, f"{stack.url}/files", anna.headers["Authorization"])

    stored = anna.get(f"{stack.url}/files", timeout=120).json()["items"][0]
    location = f"/api/v1/files/{stored['id']}"
    assert done == [201, location, "a.txt", 206, "bytes 5-11/17", "another"]


def test_a_page_of_another_origin_reads_no_answer_and_uploads_nothing(
    stack: Stack, anna: requests.Session, browser: webdriver.Chrome, tmp_path: Path
) -> None:
    before = stack.states()

    with site(tmp_path) as origin:
        browser.get(origin)
        done = browser.execute_script(UPLOAD_AND_DOWNLOAD, f"{stack.url}/files", anna.headers["Authorization"])

    assert done == ["TypeError"]
    assert stack.states() == before
