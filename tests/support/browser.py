"""Chromium without a window."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from selenium import webdriver

from tests.support.services import program


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser that finds no host but this machine and writes into a folder of its own; skips where it is missing."""
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium", package="chromium")
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "no-proxy-server"):
        options.add_argument(f"--{argument}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    chromedriver = program("chromedriver", package="chromium-driver")
    # Not pytest's: the path of a socket in it may not be long.
    with tempfile.TemporaryDirectory(prefix="chromium-") as folder:
        environ = {**os.environ, "HOME": folder, "TMPDIR": folder}
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver, env=environ))
        try:
            yield driver
        finally:
            driver.quit()
