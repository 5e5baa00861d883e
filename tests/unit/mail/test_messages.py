import re
from dataclasses import replace

import pytest
from jinja2 import DictLoader, UndefinedError

from vault.mail.messages import MessageRenderer, OutgoingMail
from vault.mail.models import MailKind
from vault.mail.outbox import LINK_LIFETIMES

PUBLIC_URL = "https://vault.example.org"
TOKEN = "Zm9yLXRlc3Rz_-0123456789abcdefghijklmnopqr"
RECIPIENT = "anna@example.org"


@pytest.fixture
def renderer() -> MessageRenderer:
    return MessageRenderer(PUBLIC_URL, PUBLIC_URL)


def rendered(renderer: MessageRenderer, kind: MailKind) -> OutgoingMail:
    return renderer.render(kind, RECIPIENT, token=TOKEN if kind in LINK_LIFETIMES else None)


@pytest.mark.parametrize("kind", MailKind)
def test_every_kind_renders_as_text_and_html(renderer: MessageRenderer, kind: MailKind) -> None:
    mail = rendered(renderer, kind)

    assert mail.recipient == RECIPIENT
    assert mail.subject
    assert mail.text.startswith("Hello,\n")
    assert mail.html.startswith("<!doctype html>")
    assert f"<title>{mail.subject}</title>" in mail.html
    assert PUBLIC_URL in mail.text
    assert f'href="{PUBLIC_URL}' in mail.html
    assert "{{" not in mail.text + mail.html
    assert mail.text.endswith("\n")


@pytest.mark.parametrize("kind", MailKind)
def test_texts_fit_a_terminal_but_for_links(renderer: MessageRenderer, kind: MailKind) -> None:
    mail = rendered(renderer, kind)

    assert all(len(line) <= 78 or line.startswith(PUBLIC_URL) for line in mail.text.splitlines())


def test_the_verification_link_stands_alone_and_whole(renderer: MessageRenderer) -> None:
    link = f"{PUBLIC_URL}/verify-email?token={TOKEN}"

    mail = renderer.render(MailKind.VERIFY_EMAIL, RECIPIENT, token=TOKEN)

    assert link in mail.text.splitlines()
    assert mail.html.count(link) == 2
    assert set(re.findall(r"https?://[^\s\"<]+", mail.text + mail.html)) == {link}


@pytest.mark.parametrize(
    ("kind", "page"),
    [
        (MailKind.VERIFY_EMAIL, "https://vault.example.org/verify-email"),
        (MailKind.CHANGE_EMAIL, "https://vault.example.org/verify-email"),
        (MailKind.RESET_PASSWORD, "https://app.example.org/x/reset-password"),
        (MailKind.ADMIN_INVITATION, "https://app.example.org/x/reset-password"),
    ],
)
def test_reset_links_lead_to_the_frontend_and_the_others_to_the_service(kind: MailKind, page: str) -> None:
    mail = MessageRenderer(PUBLIC_URL, "https://app.example.org/x").render(kind, RECIPIENT, token=TOKEN)

    assert f"{page}?token={TOKEN}" in mail.text.splitlines()
    assert mail.html.count(f"{page}?token={TOKEN}") == 2


@pytest.mark.parametrize("kind", sorted(set(MailKind) - set(LINK_LIFETIMES)))
def test_a_notice_has_no_room_for_a_token(renderer: MessageRenderer, kind: MailKind) -> None:
    with pytest.raises(KeyError):
        renderer.render(kind, RECIPIENT, token=TOKEN)


def test_links_keep_the_path_of_the_public_url() -> None:
    mail = MessageRenderer("https://example.org/vault", "https://example.org/vault").render(
        MailKind.VERIFY_EMAIL, RECIPIENT, token=TOKEN
    )

    assert f"https://example.org/vault/verify-email?token={TOKEN}" in mail.text


def test_a_verification_mail_without_a_token_is_not_made(renderer: MessageRenderer) -> None:
    with pytest.raises(UndefinedError):
        renderer.render(MailKind.VERIFY_EMAIL, RECIPIENT)


def test_a_mail_that_needs_no_token_needs_none(renderer: MessageRenderer) -> None:
    mail = renderer.render(MailKind.ALREADY_REGISTERED, RECIPIENT)

    assert "token" not in mail.text + mail.html


def test_an_unknown_kind_is_a_mistake(renderer: MessageRenderer) -> None:
    with pytest.raises(KeyError):
        renderer.render("newsletter", RECIPIENT)  # type: ignore[arg-type]


def test_html_is_escaped_and_text_is_not() -> None:
    mail = MessageRenderer("https://example.org/a&b'c", "https://example.org/a&b'c").render(
        MailKind.VERIFY_EMAIL, RECIPIENT, token='<"&>'
    )

    assert "https://example.org/a&b'c/verify-email?token=<\"&>" in mail.text
    assert '<"&>' not in mail.html
    assert mail.html.count("https://example.org/a&amp;b&#39;c/verify-email?token=&lt;&#34;&amp;&gt;") == 2


def test_a_templates_mistyped_variable_is_an_error(renderer: MessageRenderer) -> None:
    renderer._templates.loader = DictLoader(
        {"already_registered.txt": "{{ publik_url }}", "already_registered.html": "well"}
    )

    with pytest.raises(UndefinedError):
        renderer.render(MailKind.ALREADY_REGISTERED, RECIPIENT)


def test_message_ids_are_fresh_and_of_the_public_host() -> None:
    renderer = MessageRenderer("https://vault.example.org:8443/x", "https://vault.example.org:8443/x")

    ids = {renderer.render(MailKind.ALREADY_REGISTERED, RECIPIENT).message_id for _ in range(5)}

    assert len(ids) == 5
    assert all(re.fullmatch(r"<[^@<>\s]+@vault\.example\.org>", message_id) for message_id in ids)


def test_a_mails_repr_shows_neither_recipient_nor_content(renderer: MessageRenderer) -> None:
    mail = renderer.render(MailKind.VERIFY_EMAIL, RECIPIENT, token=TOKEN)

    assert RECIPIENT not in repr(mail)
    assert TOKEN not in repr(replace(mail, recipient="b@example.org"))
    assert mail.subject in repr(mail)
