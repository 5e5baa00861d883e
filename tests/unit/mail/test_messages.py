import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from jinja2 import Environment, TemplateNotFound, UndefinedError, meta
from markupsafe import escape

from vault.auth import mails
from vault.auth.minting import LINK_LIFETIMES
from vault.mail import messages
from vault.mail.messages import MessageRenderer, OutgoingMail
from vault.mail.models import MailKind

PUBLIC_URL = "https://vault.example.org"
TOKEN = "Zm9yLXRlc3Rz_-0123456789abcdefghijklmnopqr"
RECIPIENT = "anna@example.org"
TEMPLATES = Path(messages.__file__).parent / "templates"
NAMES = [*(kind.name for kind in mails.KINDS), "test"]
LANGUAGES = sorted(folder.name for folder in TEMPLATES.iterdir() if folder.is_dir())


@pytest.fixture
def renderer() -> MessageRenderer:
    return MessageRenderer(PUBLIC_URL, PUBLIC_URL)


def rendered(renderer: MessageRenderer, kind: MailKind) -> OutgoingMail:
    return renderer.render(kind, RECIPIENT, token=TOKEN if kind in LINK_LIFETIMES else None)


def every_mail(renderer: MessageRenderer) -> list[OutgoingMail]:
    return [*(rendered(renderer, kind) for kind in mails.KINDS), renderer.render_test(RECIPIENT)]


def paragraphs_of(html: str) -> list[str]:
    """The words of each <p>, in order."""
    return [unescape(re.sub("<[^>]+>", "", words)) for words in re.findall(r"<p\b[^>]*>(.*?)</p>", html, re.DOTALL)]


def test_every_mail_is_a_text_and_a_page_for_one_reader(renderer: MessageRenderer) -> None:
    made = every_mail(renderer)

    for mail in made:
        assert mail.recipient == RECIPIENT
        assert mail.text.startswith("Hello,\n")
        assert mail.text.endswith("\n")
        assert not mail.text.endswith("\n\n")
        assert mail.html.startswith("<!doctype html>")
        assert f"<title>{mail.subject}</title>" in mail.html
        assert PUBLIC_URL in mail.text
        assert f'href="{PUBLIC_URL}' in mail.html
        assert RECIPIENT not in mail.subject + mail.text + mail.html
        assert "{{" not in mail.text + mail.html
    assert len({mail.subject for mail in made}) == len(made)


def test_subjects_are_one_short_line_of_ascii(renderer: MessageRenderer) -> None:
    for mail in every_mail(renderer):
        assert re.fullmatch(r"[A-Z][A-Za-z ]{10,58}", mail.subject), mail.subject


def test_the_page_has_the_words_of_the_text(renderer: MessageRenderer) -> None:
    for mail in every_mail(renderer):
        name, *paragraphs = paragraphs_of(mail.html)
        assert name == "Secure Vault"
        assert paragraphs == [" ".join(paragraph.split()) for paragraph in mail.text.split("\n\n")], mail.subject


def test_pages_need_no_picture_no_script_and_no_other_server(renderer: MessageRenderer) -> None:
    for mail in every_mail(renderer):
        assert not re.search(r"<(img|script|link|style|iframe|object|form)\b|url\(|@import|\bon\w+=", mail.html)
        assert set(re.findall(r"https?://[^/\s\"<?]+", mail.html)) == {PUBLIC_URL}
        assert '<meta name="color-scheme" content="light dark">' in mail.html


def test_texts_fit_a_terminal_but_for_links(renderer: MessageRenderer) -> None:
    for mail in every_mail(renderer):
        assert all(len(line) < 78 or line.startswith(PUBLIC_URL) for line in mail.text.splitlines())


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_has_every_text(language: str) -> None:
    files = {path.name for path in (TEMPLATES / language).iterdir()}

    assert files == {f"{name}.{form}" for name in NAMES for form in ("txt", "html")}
    for name in NAMES:
        head, _, text = (TEMPLATES / language / f"{name}.txt").read_text().partition("\n\n")
        assert re.fullmatch(r"Subject: [^{\n]+", head)
        assert text


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", NAMES)
def test_a_missing_variable_is_an_error_in_every_template(renderer: MessageRenderer, language: str, name: str) -> None:
    for form in ("txt", "html"):
        source = (TEMPLATES / language / f"{name}.{form}").read_text()
        needed = meta.find_undeclared_variables(Environment().parse(source)) - {"parts"}
        template = renderer._templates.get_template(f"{language}/{name}.{form}")
        values = {"public_url": PUBLIC_URL, "link": PUBLIC_URL, "language": language, "subject": "Subject"}

        assert needed <= {"public_url", "link"}
        assert needed
        assert template.render(values)
        for missing in needed if form == "txt" else values.keys() & (needed | {"language", "subject"}):
            with pytest.raises(UndefinedError):
                template.render({key: value for key, value in values.items() if key != missing})


@pytest.mark.parametrize(
    ("kind", "page"),
    [
        (mails.VERIFY_EMAIL, "https://vault.example.org/a&b'c/verify-email"),
        (mails.CHANGE_EMAIL, "https://vault.example.org/a&b'c/verify-email"),
        (mails.RESET_PASSWORD, "https://app.example.org/x/reset-password"),
        (mails.ADMIN_INVITATION, "https://app.example.org/x/reset-password"),
    ],
)
@pytest.mark.parametrize("token", [TOKEN, '<"&>'], ids=["token", "signs-of-html"])
def test_a_link_is_a_whole_line_of_the_text_and_escaped_in_the_page(kind: MailKind, page: str, token: str) -> None:
    public_url = "https://vault.example.org/a&b'c"

    mail = MessageRenderer(public_url, "https://app.example.org/x").render(kind, RECIPIENT, token=token)

    assert f"{page}?token={token}" in mail.text.splitlines()
    assert mail.html.count(escape(f"{page}?token={token}")) == 2
    assert '<"&>' not in mail.html
    assert set(re.findall(r"https?://\S+", mail.text)) - {public_url} == {f"{page}?token={token}"}
    assert set(re.findall(r"https?://[^\s\"<]+", mail.html)) - {escape(public_url)} == {escape(f"{page}?token={token}")}


@pytest.mark.parametrize("kind", mails.KINDS, ids=lambda kind: kind.name)
def test_a_mail_is_made_with_a_token_if_and_only_if_it_has_a_link(renderer: MessageRenderer, kind: MailKind) -> None:
    has_link = kind in LINK_LIFETIMES

    with pytest.raises(UndefinedError if has_link else AssertionError):
        renderer.render(kind, RECIPIENT, token=None if has_link else TOKEN)

    mail = rendered(renderer, kind)
    assert ("token=" in mail.text) == ("token=" in mail.html) == has_link


def test_an_unknown_kind_is_refused(renderer: MessageRenderer) -> None:
    with pytest.raises(TemplateNotFound):
        renderer.render(MailKind("newsletter"), RECIPIENT)


@pytest.mark.parametrize(
    ("url", "domain"),
    [
        ("https://vault.example.org:8443/x", "vault.example.org"),
        ("http://127.0.0.1:8000", "127.0.0.1"),
        ("http://[::1]:8000", "[IPv6:::1]"),
    ],
    ids=["name", "v4", "v6"],
)
def test_message_ids_are_fresh_and_of_the_public_host(url: str, domain: str) -> None:
    renderer = MessageRenderer(url, url)

    ids = {renderer.render(mails.ALREADY_REGISTERED, RECIPIENT).message_id for _ in range(5)}

    assert len(ids) == 5
    assert all(re.fullmatch(rf"<[^@<>\s]+@{re.escape(domain)}>", message_id) for message_id in ids)


def test_a_mails_repr_shows_neither_recipient_nor_content(renderer: MessageRenderer) -> None:
    mail = renderer.render(mails.VERIFY_EMAIL, RECIPIENT, token=TOKEN)

    assert RECIPIENT not in repr(mail)
    assert TOKEN not in repr(replace(mail, recipient="b@example.org"))
    assert mail.subject in repr(mail)
