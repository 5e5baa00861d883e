"""findings/: scripts are named in their list, and install what is pinned."""

import re
from pathlib import Path

import pytest

from vault.settings.config import ROOT

FOLDER = ROOT / "findings"
SCRIPTS = sorted(FOLDER.glob("*.sh"))


def test_the_list_names_every_script_and_files_that_exist() -> None:
    text = (FOLDER / "README.md").read_text()

    assert set(re.findall(r"\]\(([a-z-]+\.sh)\)", text)) == {script.name for script in SCRIPTS}
    assert [name for name in re.findall(r"\(`([a-z_/]+\.py)`\)", text) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_installs_pinned_releases_that_its_comment_names(script: Path) -> None:
    text = script.read_text()
    comment = "".join(line for line in text.splitlines() if line.startswith("#"))

    by_pip = re.findall(r"pip\" install(?: --[a-z-]+)*((?: '?[A-Za-z0-9-]+==[0-9.]+'?)+)(?: 2>.*)?$", text, re.M)
    by_npm = re.findall(r'npm install(?: --[a-z-]+)* --prefix "\$folder"((?: [a-z-]+@[0-9.]+)+)(?: 2>.*)?$', text, re.M)

    assert (len(by_pip), len(by_npm)) == (text.count('pip" install'), text.count("npm install"))
    (packages,) = by_pip + by_npm
    for pin in packages.replace("'", "").split():
        name, release = re.split("==|@", pin)
        assert f"{name} {release}" in comment
