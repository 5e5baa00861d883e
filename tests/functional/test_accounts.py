"""Accounts through HTTP: sign-up, confirmation, sign-in, tokens, and what each of them leaves behind."""

import json
import unicodedata
import uuid
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from testing.passwords import NEW_PASSWORD, PASSWORD, WRONG_PASSWORD
from testing.vault import AUTH, EMAIL, SQLITE, Person, Vault, but_request_id, forged, refusal
from vault.auth.models import User
from vault.core.derived import derive_key
from vault.mail.models import MailJob

pytestmark = [pytest.mark.one_database, pytest.mark.usefixtures("no_secret_stays"), pytest.mark.uncounted]

# Sign-up and confirmation


def test_a_person_registers_confirms_the_address_and_signs_in(vault: Vault) -> None:
    registered = vault.register(full_name="Ánna Ödegård")
    token = vault.mailed_token(EMAIL)
    verified = vault.verify(token)
    signed_in = vault.login()
    anna = Person(vault, EMAIL, signed_in.json["access_token"], signed_in.json["refresh_token"])

    assert (registered.status_code, verified.status_code, signed_in.status_code) == (202, 200, 200)
    assert signed_in.json.keys() == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert (signed_in.json["token_type"], signed_in.json["expires_in"]) == ("Bearer", 900)
    me = anna.me()
    assert me.status_code == 200
    assert me.json.keys() == {"id", "email", "full_name", "role", "email_verified", "created_at"}
    assert (me.json["email"], me.json["full_name"]) == (EMAIL, "Ánna Ödegård")
    assert (me.json["role"], me.json["email_verified"]) == ("user", True)
    assert datetime.fromisoformat(me.json["created_at"]).utcoffset() == timedelta(0)


def test_a_used_link_is_answered_alike_for_an_hour_and_then_refused(vault: Vault) -> None:
    token = vault.confirmation_token()

    first = vault.verify(token)
    vault.clock.advance(minutes=59)
    second = vault.verify(token)
    vault.clock.advance(minutes=2)
    third = vault.verify(token)

    assert but_request_id(first) == but_request_id(second)
    assert first.status_code == 200
    assert refusal(third) == (400, "invalid_token")
    assert vault.outcomes("user.email_verified") == {"ok": 1, "failed": 1}


def test_an_unknown_link_is_refused(vault: Vault) -> None:
    token = vault.confirmation_token()

    answers = [vault.verify(text) for text in ("", "x", token[:-1], token + "x", token.swapcase(), "é" * 200)]

    assert {refusal(answer) for answer in answers} == {(400, "invalid_token")}
    assert vault.user().email_verified_at is None


def test_a_newer_link_kills_none_and_one_success_kills_the_others(vault: Vault) -> None:
    first = vault.confirmation_token()
    vault.resend()
    second = vault.mailed_token(EMAIL)

    assert first != second
    assert vault.verify(first).status_code == 200
    assert refusal(vault.verify(second)) == (400, "invalid_token")


def test_registering_an_unverified_address_again_starts_over(vault: Vault) -> None:
    first = vault.confirmation_token(full_name="First")

    second = vault.confirmation_token(password=NEW_PASSWORD, full_name="Second")

    assert refusal(vault.verify(first)) == (400, "invalid_token")
    assert vault.verify(second, NEW_PASSWORD).status_code == 200
    assert refusal(vault.login()) == (401, "invalid_credentials")
    assert vault.login(password=NEW_PASSWORD).status_code == 200
    assert vault.user().full_name == "Second"


def test_registering_too_often_leaves_the_last_link_and_password_as_they_are(vault: Vault) -> None:
    for password in (PASSWORD, PASSWORD, NEW_PASSWORD):
        vault.register(password=password)
    token = vault.mailed_token(EMAIL)

    answers = [vault.register(password=f"a stranger tries words {n}") for n in range(3)]

    assert {answer.status_code for answer in answers} == {202}
    assert vault.verify(token, NEW_PASSWORD).status_code == 200
    assert vault.login(password=NEW_PASSWORD).status_code == 200


def test_registering_again_leaves_a_link_that_sets_a_password(vault: Vault) -> None:
    vault.register()
    vault.forgot()
    token = vault.mailed_token(EMAIL)
    vault.register(EMAIL, "a stranger tries his words")

    reset = vault.reset(token)

    assert reset.status_code == 204
    assert vault.login(password=NEW_PASSWORD).status_code == 200


def test_a_mail_still_queued_for_the_first_registration_is_never_sent(vault: Vault) -> None:
    vault.register()
    vault.register(password=NEW_PASSWORD)

    assert vault.mails() == [(EMAIL, "Confirm your address for Secure Vault")]


def test_registering_a_verified_address_mails_its_owner_and_changes_nothing(vault: Vault, anna: Person) -> None:
    before = vault.user()

    answer = vault.register(password=NEW_PASSWORD, full_name="Mallory")

    after = vault.user()
    assert answer.status_code == 202
    assert vault.mails() == [(EMAIL, "You already have a Secure Vault account")]
    assert (after.password_hash, after.full_name) == (before.password_hash, before.full_name)
    assert refusal(vault.login(password=NEW_PASSWORD)) == (401, "invalid_credentials")
    assert vault.login().status_code == 200


@SQLITE
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("Visit evil.example now", id="advertisement"),
        pytest.param("<b onclick=alert(1)>Anna</b>", id="markup"),
        pytest.param("{{7*7}} {{'seven' * 2}}", id="template"),
        pytest.param("Anna\r\nBcc: bert@example.org", id="newlines"),
        pytest.param("😀" * 200, id="emoji"),
    ],
)
def test_no_mail_tells_a_name_neither_before_the_address_is_verified_nor_after(vault: Vault, name: str) -> None:
    answer = vault.register(full_name=name)
    if answer.status_code == 202:
        vault.verify(vault.mailed_token(EMAIL))
    else:
        # Some names are refused; the tables may hold one from before that rule.
        vault.verify(vault.confirmation_token())
        vault.change_user(full_name=name)
    vault.register()
    vault.forgot()
    vault.run_queue()

    assert len(vault.mailer.sent) == 3
    for mail in vault.mailer.sent:
        everything = mail.subject + mail.text + mail.html + mail.message_id
        assert not any(part in everything for part in ("evil.example", "onclick", "7*7", "seven", "Bcc:", "😀"))
        assert mail.recipient == EMAIL


@SQLITE
def test_no_mail_leads_to_the_host_that_a_request_names(vault: Vault) -> None:
    headers = {"Host": "evil.example", "X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example"}
    answers = [vault.register(headers=headers)]
    vault.verify(vault.mailed_token(EMAIL))
    answers += [vault.register(headers=headers), vault.forgot(headers=headers)]
    vault.run_queue()

    assert {answer.status_code for answer in answers} == {202}
    assert len(vault.mailer.sent) == 3
    for mail in vault.mailer.sent:
        assert "evil.example" not in mail.subject + mail.text + mail.html + mail.message_id
        assert vault.settings.site.public_url in mail.text


def test_addresses_that_differ_in_case_or_domain_spelling_are_one_account(vault: Vault) -> None:
    vault.register(email="Anna@Example.ORG")
    vault.register(email="anna@EXAMPLE.org")
    vault.register(email="bert@bücher.example")
    vault.verify(vault.mailed_token("anna@EXAMPLE.org"))
    vault.verify(vault.mailed_token("bert@bücher.example"))

    assert vault.login(email="ANNA@example.org").status_code == 200
    assert vault.login(email="Bert@XN--BCHER-KVA.example").status_code == 200
    keys = set(vault.scalars(sa.select(User.email_key)))
    assert keys == {"anna@example.org", "bert@xn--bcher-kva.example"}


# What answers tell about an address


def test_answers_and_their_work_are_the_same_for_every_address(vault: Vault, anna: Person, bert: Person) -> None:
    vault.register("waiting@example.org")
    vault.change_user(bert.email, disabled_at=vault.clock())
    everybody = [EMAIL, bert.email, "waiting@example.org", "nobody@example.org"]

    refused = {str(but_request_id(vault.login(email, WRONG_PASSWORD))) for email in everybody}
    right_but_closed = {str(but_request_id(vault.login(email))) for email in everybody[1:3]}

    assert len(refused) == 1
    assert right_but_closed == refused
    for ask, owed in (
        (vault.resend, {"waiting@example.org"}),
        (vault.forgot, {EMAIL, "waiting@example.org"}),
        (vault.register, {*everybody}),
    ):
        vault.execute(sa.delete(MailJob))
        vault.queue.clear()
        assert len({str(but_request_id(ask(email))) for email in everybody}) == 1
        recipients = vault.scalars(sa.select(MailJob.recipient))
        assert (len(recipients), len(vault.queue), {*recipients} - {None}) == (4, 4, owed)
    events = vault.audit_trail("user.password_reset_requested")
    told = sorted((event.outcome, str(event.actor_email), event.details.get("count")) for event in events)
    assert told == [("failed", "None", 2), ("ok", EMAIL, None), ("ok", "waiting@example.org", None)]


def test_the_right_password_of_an_unverified_account_mails_the_link_again(vault: Vault) -> None:
    vault.register()
    vault.mails()

    wrong = vault.login(password=WRONG_PASSWORD)
    mails_after_wrong = len(vault.mails())
    right = vault.login()

    assert refusal(wrong) == refusal(right) == (401, "invalid_credentials")
    assert mails_after_wrong == 0
    assert vault.verify(vault.mailed_token(EMAIL)).status_code == 200
    assert vault.login().status_code == 200


# Passwords


def test_weak_short_and_long_passwords_are_refused_by_name(vault: Vault) -> None:
    weak = {
        "11 characters": "x7!Kq-92mZp",
        "132 characters": "x7!Kq-92mZp " * 11,
        "common": "password12345",
        "the address": EMAIL,
        "the name": "Annabelle Odegard",
    }

    answers = {what: vault.register(password=text, full_name="Annabelle Odegard") for what, text in weak.items()}

    assert {what for what, answer in answers.items() if refusal(answer) != (422, "validation_failed")} == set()
    assert {tuple(answer.json["errors"]) for answer in answers.values()} == {("password",)}
    assert vault.queue == []


def test_passwords_take_any_characters_and_are_compared_in_one_normal_form(vault: Vault) -> None:
    composed = unicodedata.normalize("NFC", "blåbærgrød på tirsdag \0\t")
    decomposed = unicodedata.normalize("NFD", composed)
    assert composed != decomposed

    vault.verify(vault.confirmation_token(password=composed), decomposed)

    assert vault.login(password=decomposed).status_code == 200
    assert vault.login(password=composed[:-1]).status_code == 401


# Input that is not acceptable

NOT_TEXT: list[Any] = ["a\ud800", ["a"], 5, 1.5, None, True, {"a": "b"}, [[]]]
FIELDS = {
    "register": {"email": EMAIL, "password": PASSWORD, "full_name": ""},
    "login": {"email": EMAIL, "password": PASSWORD},
    "refresh": {"refresh_token": "x"},
    "verify-email": {"token": "x", "password": PASSWORD},
    "resend-verification": {"email": EMAIL},
    "forgot-password": {"email": EMAIL},
    "reset-password": {"token": "x", "new_password": NEW_PASSWORD},
}
SIGNED_IN_FIELDS = {
    "change-password": {"current_password": PASSWORD, "new_password": NEW_PASSWORD},
    "change-email": {"new_email": "new@example.org", "password": PASSWORD},
}


def test_fields_that_hold_no_text_are_named(vault: Vault, anna: Person) -> None:
    routes = [(vault.client.post, f"{AUTH}/{name}", fields) for name, fields in FIELDS.items()]
    routes += [(anna.post, f"{AUTH}/{name}", fields) for name, fields in SIGNED_IN_FIELDS.items()]
    routes += [(anna.delete, f"{AUTH}/me", {"password": PASSWORD})]
    cases = [(send, path, fields, field, value) for send, path, fields in routes for field in fields
             for value in [*NOT_TEXT, *([] if "password" in field else ["a\0b"])]]  # fmt: skip
    cases += [(anna.patch, f"{AUTH}/me", {}, "full_name", value) for value in [*NOT_TEXT, "a\0b"]]
    unexpected = []

    for send, path, fields, field, value in cases:
        answer = send(path, data=json.dumps({**fields, field: value}), content_type="application/json")
        if refusal(answer) != (422, "validation_failed") or list(answer.json["errors"]) != [field]:
            unexpected.append((path, field, value, answer.status_code, answer.text))

    assert unexpected == []
    assert vault.queue == []


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        pytest.param("register", {"email": None, "password": None}, id="missing"),
        pytest.param("register", {"role": "admin"}, id="unknown"),
        pytest.param("register", {"email": "no address"}, id="no address"),
        pytest.param("register", {"email": f"{'a' * 250}@example.org"}, id="long"),
        pytest.param("register", {"full_name": "x" * 201}, id="long name"),
        pytest.param("register", {"full_name": "a\r\nBcc: x@example.org"}, id="name header"),
        pytest.param("register", {"full_name": "a\u2028b"}, id="name lines"),
        pytest.param("register", {"password": "x" * 10_000}, id="huge password"),
        pytest.param("login", {"password": "x" * 1025}, id="long password"),
        pytest.param("login", {"a\ud800b": 1}, id="odd"),
        pytest.param("refresh", {"refresh_token": None}, id="no refresh token"),
        pytest.param("forgot-password", {"email": "no address"}, id="forgot"),
        pytest.param("reset-password", {"token": "x" * 257}, id="reset token"),
        pytest.param("reset-password", {"new_password": "x" * 10_000}, id="reset password"),
        pytest.param("verify-email", {"token": "x" * 257}, id="token"),
    ],
)
def test_missing_unknown_and_overlong_fields_are_named(vault: Vault, path: str, wrong: dict[str, Any]) -> None:
    fields = {name: value for name, value in {**FIELDS[path], **wrong}.items() if value is not None}

    answer = vault.client.post(f"{AUTH}/{path}", data=json.dumps(fields), content_type="application/json")

    assert refusal(answer) == (422, "validation_failed")
    assert answer.mimetype == "application/problem+json"
    named = [name.encode("ascii", "backslashreplace").decode() for name in sorted(wrong)]
    assert sorted(json.loads(answer.text)["errors"]) == named


def test_bodies_that_are_not_json_are_told_apart(vault: Vault) -> None:
    good = json.dumps({"email": EMAIL, "password": PASSWORD})
    cases: dict[str, tuple[bytes, str | None, tuple[int, str]]] = {
        "form": (b"email=a", "application/x-www-form-urlencoded", (415, "unsupported_media_type")),
        "text": (good.encode(), "text/plain", (415, "unsupported_media_type")),
        "no type": (good.encode(), None, (415, "unsupported_media_type")),
        "empty": (b"", "application/json", (400, "malformed_json")),
        "cut": (good[:-1].encode(), "application/json", (400, "malformed_json")),
        "two values": (good.encode() * 2, "application/json", (400, "malformed_json")),
        "Latin-1": ('{"email": "ä"}'.encode("latin-1"), "application/json", (400, "malformed_json")),
        "deep": (b'{"email": ' + b"[" * 60_000, "application/json", (400, "malformed_json")),
        "deep and closed": (b"[" * 30_000 + b"]" * 30_000, "application/json", (400, "malformed_json")),
        "array": (b"[]", "application/json", (422, "validation_failed")),
        "null": (b"null", "application/json", (422, "validation_failed")),
        "large": (b'{"email": "' + b"a" * 10_000_000 + b'"}', "application/json", (413, "too_large")),
    }

    answers = {
        what: vault.client.post(f"{AUTH}/login", data=body, headers={"Content-Type": kind} if kind else {})
        for what, (body, kind, _) in cases.items()
    }

    assert {what: refusal(answer) for what, answer in answers.items()} == {w: want for w, (_, _, want) in cases.items()}
    assert {answer.mimetype for answer in answers.values()} == {"application/problem+json"}


def test_a_large_json_body_without_a_length_is_refused_while_it_is_read(vault: Vault) -> None:
    class Endless:
        given = 0

        def read(self, length: int = -1) -> bytes:
            assert length > 0
            Endless.given += length
            return b"a" * length

    answer = vault.client.post(
        f"{AUTH}/login",
        content_type="application/json",
        environ_overrides={
            "wsgi.input": Endless(),
            "wsgi.input_terminated": True,
            "CONTENT_LENGTH": "",
            "HTTP_TRANSFER_ENCODING": "chunked",
        },
    )

    assert refusal(answer) == (413, "too_large")
    assert Endless.given <= 1024 * 1024


# The profile


def test_the_name_can_be_changed_and_nothing_else(vault: Vault, anna: Person, bert: Person) -> None:
    changed = anna.rename("安娜 \u202e 🦀")
    refused = anna.patch(f"{AUTH}/me", json={"full_name": "x", "role": "admin", "email": "x@example.org"})

    assert changed.status_code == 200
    assert changed.json == anna.me().json
    assert changed.json["full_name"] == "安娜 \u202e 🦀"
    assert (refused.status_code, sorted(refused.json["errors"])) == (422, ["email", "role"])
    assert bert.me().json["full_name"] == ""


# Tokens


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR", "Bearer "])
def test_a_well_forged_token_is_accepted_in_any_case_of_its_scheme(vault: Vault, anna: Person, scheme: str) -> None:
    token = forged(vault, anna.access_token)

    answer = vault.client.get(f"{AUTH}/me", headers={"Authorization": f"{scheme} {token}"})

    assert answer.status_code == 200


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_bad_tokens_get_one_401_and_missing_ones_a_plain_challenge(vault: Vault, anna: Person, bert: Person) -> None:
    secret = vault.settings.site.secret_key
    now = datetime.now(UTC)
    long_ago, bert_id = now - timedelta(hours=1), str(vault.user(bert.email).id)
    crafted = partial(forged, vault, anna.access_token)
    tokens: dict[str, str | None] = {
        "none at all": None,
        "empty": "",
        "garbage": "garbage",
        "three dots": "a.b.c",
        "another key": crafted(key=b"k" * 32),
        "the secret itself": crafted(key=secret.encode()),
        "another label's key": crafted(key=derive_key(secret, "cursor")),
        "alg none": crafted(key="", algorithm="none"),
        "HS384": crafted(algorithm="HS384"),
        "HS512": crafted(algorithm="HS512"),
        "a refresh token": anna.refresh_token,
        "typed refresh": crafted(type="refresh"),
        "somebody else's sub": crafted(sub=bert_id),
        "an unknown sub": crafted(sub=str(uuid.uuid4())),
        "a sub that is no id": crafted(sub="anna"),
        "no sub": crafted(sub=None),
        "no sid": crafted(sid=None),
        "an unknown sid": crafted(sid=str(uuid.uuid4())),
        "a sid that is no text": crafted(sid=[1]),
        "expired": crafted(iat=long_ago, nbf=long_ago, exp=now - timedelta(minutes=1)),
        "not valid yet": crafted(nbf=now + timedelta(hours=1)),
        "another issuer": crafted(iss="elsewhere"),
        "no issuer": crafted(iss=None),
        "another audience": crafted(aud="elsewhere"),
        "no audience": crafted(aud=None),
        "cut": anna.access_token[:-2],
        "two words": f"{anna.access_token} x",
    }
    headers = {w: {} if t is None else {"Authorization": f"Bearer {t}"} for w, t in tokens.items()}
    headers |= {
        "Basic": {"Authorization": "Basic YW5uYTpwYXNzd29yZA=="},
        "no scheme": {"Authorization": anna.access_token},
        "another header": {"X-Authorization": f"Bearer {anna.access_token}"},
    }

    answers = {what: vault.client.get(f"{AUTH}/me", headers=head) for what, head in headers.items()}

    # RFC 6750, 3.1: a client that sent no bearer token is told of none.
    without = {"none at all", "Basic", "no scheme", "another header"}
    challenges = {what: answer.headers.pop("WWW-Authenticate") for what, answer in answers.items()}
    expected = but_request_id(answers["none at all"])
    assert expected[0] == 401
    assert json.loads(expected[2])["code"] == "unauthorized"
    assert {what: but_request_id(a) for what, a in answers.items() if but_request_id(a) != expected} == {}
    assert {challenges.pop(what) for what in without} == {'Bearer realm="secure-vault"'}
    assert set(challenges.values()) == {'Bearer realm="secure-vault", error="invalid_token"'}


def test_a_token_ends_with_its_account_and_its_session(vault: Vault, anna: Person, bert: Person) -> None:
    vault.change_user(anna.email, disabled_at=vault.clock())
    vault.execute(sa.delete(User).where(User.email_key == bert.email))

    disabled, deleted, refreshed = anna.me(), bert.me(), [anna.refresh()]
    vault.change_user(anna.email, disabled_at=None)
    enabled = anna.me()
    vault.change_user(anna.email, email_verified_at=None)
    unverified = anna.me()
    refreshed.append(anna.refresh())
    vault.change_user(anna.email, email_verified_at=vault.clock())
    vault.clock.advance(days=30)
    session_over = anna.me()

    assert enabled.status_code == 200
    assert {refusal(a) for a in (disabled, deleted, unverified, session_over, *refreshed)} == {(401, "unauthorized")}
    assert len({but_request_id(a)[2] for a in (disabled, deleted, unverified, session_over)}) == 1


def test_a_token_counts_in_the_authorization_header_only(vault: Vault, anna: Person) -> None:
    token = anna.access_token
    vault.client.set_cookie("access_token_cookie", token)
    vault.client.set_cookie("access_token", token)

    in_cookie = vault.client.get(f"{AUTH}/me")
    in_body = vault.client.patch(f"{AUTH}/me", json={"full_name": "x", "access_token": token})
    in_query = {name: vault.client.get(f"{AUTH}/me", query_string={name: token}) for name in ("jwt", "access_token")}

    assert refusal(in_cookie) == (401, "unauthorized")
    assert in_body.status_code in (401, 422)
    assert {name: refusal(a) for name, a in in_query.items()} == dict.fromkeys(in_query, (422, "validation_failed"))
    assert token not in str([a.text for a in in_query.values()])


def test_no_answer_sets_a_cookie(vault: Vault) -> None:
    anna = vault.sign_up()

    answers = [vault.register(), vault.login(), vault.resend(), anna.me(), anna.get(f"{AUTH}/nothing")]

    assert [answer.headers.get("Set-Cookie") for answer in answers] == [None] * 5
    assert {answer.headers["Cache-Control"] for answer in answers} == {"no-store"}


# What stays behind
