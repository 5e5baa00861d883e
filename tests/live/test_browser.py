"""Chromium with the running API: the documentation at /docs, and a page of another origin."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from testing.browser import chromium, site
from testing.servers import wait_until
from testing.services import program
from testing.stack import Client, Stack, embedded

SIZE = 700_001
EMPTY_PAGE = "<!DOCTYPE html><title>Another site</title>"


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    (folder / "index.html").write_text(EMPTY_PAGE)
    return folder


@pytest.fixture(scope="module")
def other_origin(other_folder: Path) -> Iterator[str]:
    with site(other_folder) as origin:
        yield origin


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, other_origin: str) -> Iterator[Stack]:
    with embedded(tmp_path_factory.mktemp("browser"), CORS_ORIGINS=other_origin) as running:
        running.start_api()
        yield running


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads: Path) -> Iterator[webdriver.Chrome]:
    with chromium(downloads) as driver:
        yield driver


# The documentation


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
    stack: Stack, person: Client, browser: webdriver.Chrome, downloads: Path, tmp_path: Path
) -> None:
    sent = tmp_path / 'фото "😀"; 100%.jpg'
    sent.write_bytes(os.urandom(SIZE))
    browser.get(f"{stack.root}/docs")

    shown(browser, browser, ".btn.authorize").click()
    shown(browser, browser, ".auth-container input").send_keys(person.token)
    shown(browser, browser, ".auth-btn-wrapper .authorize").click()
    shown(browser, browser, ".auth-btn-wrapper .btn-done").click()
    upload = open_to_try(browser, "files_upload")
    upload.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(sent))
    uploaded = execute(browser, upload)
    stored = person.get(f"{stack.url}/files", timeout=120).json()["items"][0]
    download = open_to_try(browser, "files_content")
    shown(browser, download, "tr[data-param-name=file_id] input").send_keys(stored["id"])
    downloaded = execute(browser, download)
    shown(browser, download, ".live-responses-table a[download]").click()

    # The browser chooses a name that is fit for a file.
    wait_until(lambda: [*downloads.glob("*.jpg")], what="the download")
    (received,) = downloads.iterdir()
    assert (uploaded, downloaded) == ("201", "200")
    assert (stored["name"], stored["size"], stored["content_type"]) == (sent.name, SIZE, "image/jpeg")
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
    stack: Stack, person: Client, browser: webdriver.Chrome, other_origin: str
) -> None:
    browser.get(other_origin)

    done = browser.execute_script(UPLOAD_AND_DOWNLOAD, f"{stack.url}/files", person.headers["Authorization"])

    stored = person.get(f"{stack.url}/files", timeout=120).json()["items"][0]
    location = f"/api/v1/files/{stored['id']}"
    assert done == [201, location, "a.txt", 206, "bytes 5-11/17", "another"]


def test_a_page_of_another_origin_reads_no_answer_and_uploads_nothing(
    stack: Stack, person: Client, browser: webdriver.Chrome, tmp_path: Path
) -> None:
    (tmp_path / "index.html").write_text(EMPTY_PAGE)
    before = stack.states()

    with site(tmp_path) as origin:
        browser.get(origin)
        done = browser.execute_script(UPLOAD_AND_DOWNLOAD, f"{stack.url}/files", person.headers["Authorization"])

    assert done == ["TypeError"]
    assert stack.states() == before


READ_AS_A_VIEWER_DOES = """
const [url, id, token] = arguments;
const bearer = {Authorization: token};
return (async () => {
    const part = await fetch(url + "/" + id + "/content", {headers: {...bearer, Range: "bytes=0-4"}});
    const refused = await fetch(url);
    const names = ["Accept-Ranges", "Content-Length", "Content-Range", "Content-Disposition", "ETag", "Repr-Digest"];
    return [names.filter((name) => !part.headers.get(name)), refused.status,
            ["WWW-Authenticate", "X-Request-ID"].filter((name) => !refused.headers.get(name))];
})();
"""


def test_a_page_of_a_listed_origin_reads_what_a_viewer_of_parts_needs(
    stack: Stack, person: Client, browser: webdriver.Chrome, other_origin: str
) -> None:
    stored = person.upload(b"in parts", "a.txt")
    browser.get(other_origin)

    found = browser.execute_script(
        READ_AS_A_VIEWER_DOES, f"{stack.url}/files", stored["id"], person.headers["Authorization"]
    )

    assert found == [[], 401, []]


# A service worker adds the token, which no element can, and passes on what the API answers to each range.
SERVICE_WORKER = """
let source;
self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("message", (event) => { source = event.data; event.ports[0].postMessage("ready"); });
self.addEventListener("fetch", (event) => {
    if (!source || event.request.url !== source.url) return;
    const headers = {Authorization: source.token, Range: event.request.headers.get("Range") || "bytes=0-"};
    event.respondWith(fetch(source.url, {headers, mode: "cors"}));
});
"""
PLAY = """
const [url, token, done] = arguments;
const once = (target, name) => new Promise((resolve) => target.addEventListener(name, resolve, {once: true}));
(async () => {
    const registration = await navigator.serviceWorker.register("/worker.js");
    await navigator.serviceWorker.ready;
    if (!navigator.serviceWorker.controller) await once(navigator.serviceWorker, "controllerchange");
    const channel = new MessageChannel();
    const ready = new Promise((resolve) => { channel.port1.onmessage = resolve; });
    navigator.serviceWorker.controller.postMessage({url, token}, [channel.port2]);
    await ready;
    const video = document.createElement("video");
    video.muted = true;
    const ended = Promise.race([once(video, "loadeddata"), once(video, "error")]);
    video.src = url;
    document.body.append(video);
    await ended;
    if (video.error) return done(["error", video.error.message]);
    video.currentTime = 3;
    await once(video, "seeked");
    done([window.crossOriginIsolated, video.videoWidth, video.currentTime]);
})().catch((error) => done(["error", String(error)]));
"""


def test_an_isolated_page_of_a_listed_origin_plays_a_video(
    stack: Stack, person: Client, browser: webdriver.Chrome, other_folder: Path, other_origin: str
) -> None:
    video = other_folder / "made.webm"
    make = [program("ffmpeg", package="ffmpeg"), "-v", "error", "-f", "lavfi", "-i", "testsrc=d=4:s=160x120:r=10"]
    subprocess.run([*make, "-c:v", "libvpx", str(video)], check=True, timeout=60)
    stored = person.post(
        f"{stack.url}/files?name=a.webm", data=video.read_bytes(), headers={"Content-Type": "video/webm"}, timeout=60
    ).json()
    (other_folder / "worker.js").write_text(SERVICE_WORKER)
    url = f"{stack.url}/files/{stored['id']}/content?disposition=inline"
    browser.get(other_origin)
    browser.set_script_timeout(60)

    played = browser.execute_async_script(PLAY, url, person.headers["Authorization"])

    assert played == [True, 160, 3]
