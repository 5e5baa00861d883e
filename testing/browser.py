"""Chromium, driven from tests, and sites for it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from selenium import webdriver

from testing.services import program


@contextmanager
def chromium(downloads: Path | None = None) -> Iterator[webdriver.Chrome]:
    """Yield a headless Chromium with its own folders, which reaches this machine only. Saves to `downloads`."""
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium", package="chromium")
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "no-proxy-server"):
        options.add_argument(f"--{argument}")
    options.add_argument("--window-size=1300,2000")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    if downloads is not None:
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromedriver = program("chromedriver", package="chromium-driver")
    # Not pytest's: the path of a socket in it may not be long.
    with tempfile.TemporaryDirectory(prefix="chromium-") as folder:
        environ = {**os.environ, "HOME": folder, "TMPDIR": folder}
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver, env=environ))
        try:
            yield driver
        finally:
            driver.quit()


class _Quiet(SimpleHTTPRequestHandler):
    def end_headers(self) -> None:
        # Pages that isolate themselves load from elsewhere only what says that it may be.
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def site(folder: Path) -> Iterator[str]:
    """Serve a folder; yield the site's origin."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
