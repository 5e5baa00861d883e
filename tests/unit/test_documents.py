"""Documents of the project and docs/: links, anchors and paths that exist, and tables that agree with the code."""

import re
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from vault.http.problems import _CODES, _RETRY_AFTER, STATUS
from vault.settings.config import ROOT

DOCUMENTS: Final = sorted([*ROOT.glob("*.md"), ROOT / "findings/README.md", *(ROOT / "docs").rglob("*.md")])
_CODE_BLOCK: Final = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_CODE_SPAN: Final = re.compile(r"`([^`\n]+)`")
_LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING: Final = re.compile(r"^#{1,6} +(.+)$", re.MULTILINE)
_OWN_PATH: Final = re.compile(
    r"(?:\./)?((?:vault|scripts|docs|tests|testing|migrations|findings|bench|deploy|\.github|\.ci)/[\w./-]*)"
)


@cache
def prose_of(path: Path) -> str:
    """The document without its blocks of code."""
    return _CODE_BLOCK.sub("", path.read_text())


@cache
def anchors_of(path: Path) -> set[str]:
    """The anchors that GitHub makes of the headings: small letters, hyphens for spaces, without punctuation."""
    titles = (re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in _HEADING.findall(prose_of(path)))
    return set(titles)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    broken = []
    for link in _LINK.findall(_CODE_SPAN.sub("", prose_of(document))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)

    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_of_the_repository_in_backticks_exists(document: Path) -> None:
    named = (_OWN_PATH.fullmatch(span) for span in _CODE_SPAN.findall(prose_of(document)))

    assert [match[1] for match in named if match and not (ROOT / match[1]).exists()] == []


def test_the_links_and_paths_are_found_at_all() -> None:
    readme = prose_of(ROOT / "README.md")

    assert len(_LINK.findall(readme)) > 10
    assert "a-key-that-leaked" in anchors_of(ROOT / "docs/threat-model.md")
    assert ".github/workflows/ci.yml" in _CODE_SPAN.findall(readme)


def test_every_problem_code_has_a_row_with_its_status_and_retry_after() -> None:
    text = (ROOT / "docs/api/errors.md").read_text()
    rows = {
        code: (int(status), wait) for code, status, wait in re.findall(r"^\| `(\w+)` \| (\d+) \| (\S+)", text, re.M)
    }

    expected = {code: (status, str(_RETRY_AFTER.get(code, "–"))) for code, status in STATUS.items()}
    expected["rate_limited"] = (429, "as")

    assert {code: row for code, row in rows.items() if code in expected} == expected
    assert set(_CODES.values()) <= set(rows)
