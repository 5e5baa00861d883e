"""Sessions: carried on by refresh tokens that work once, listed, and ended by their owner or by a stolen token."""

import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from testing.vault import AUTH, POSTGRESQL, Person, Vault, at_once, claims_of, forged, refusal, works
from vault.auth.models import UserSession

pytestmark = pytest.mark.usefixtures("no_secret_stays")


def session_of(vault: Vault) -> UserSession:
    with vault.container.core.sessions.begin() as session:
        (row,) = session.query(UserSession).all()
        return row


def test_each_refresh_gives_the_next_pair_and_the_session_goes_on(vault: Vault, anna: Person) -> None:
    first = anna.refresh()
    second = vault.refresh(first.json["refresh_token"])

    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json["token_type"] == "Bearer"
    assert first.json["expires_in"] == 900
    assert len({anna.refresh_token, first.json["refresh_token"], second.json["refresh_token"]}) == 3
    assert all(works(replace(anna, access_token=token)) for token in (anna.access_token, second.json["access_token"]))
    assert session_of(vault).refresh_generation == 2


def test_a_lost_refresh_answer_is_given_again_while_the_child_is_unused(vault: Vault, anna: Person) -> None:
    first = anna.refresh()
    vault.clock.advance(seconds=29)

    again = anna.refresh()

    assert again.status_code == 200
    assert again.json["refresh_token"] == first.json["refresh_token"]
    assert session_of(vault).refresh_generation == 1


@pytest.mark.parametrize("how", ["after the grace", "once the child was used", "grand-parent", "without a grace"])
def test_a_replayed_refresh_token_ends_its_session(make_vault: Callable[..., Vault], how: str) -> None:
    vault = make_vault(REFRESH_GRACE_SECONDS="0" if how == "without a grace" else "30")
    anna = vault.member()
    pair = anna.refresh().json
    if how == "after the grace":
        vault.clock.advance(seconds=30)
    if how in ("once the child was used", "grand-parent"):
        pair = vault.refresh(pair["refresh_token"]).json
    if how == "grand-parent":
        pair = vault.refresh(pair["refresh_token"]).json

    replayed = anna.refresh()

    assert refusal(replayed) == (401, "token_reused")
    assert replayed.headers["WWW-Authenticate"].startswith("Bearer")
    assert not any(works(replace(anna, access_token=token)) for token in (anna.access_token, pair["access_token"]))
    assert refusal(vault.refresh(pair["refresh_token"])) == (401, "unauthorized")
    assert refusal(anna.refresh()) == (401, "unauthorized")
    assert len(vault.audit_trail("session.refresh_reused")) == 1
    assert vault.mails() == [(anna.email, "A Secure Vault session was ended")]


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_bad_refresh_tokens_are_refused_alike(vault: Vault, anna: Person) -> None:
    bert = vault.member("bert@example.org")
    crafted = partial(forged, vault, anna.refresh_token)
    tokens: dict[str, object] = {
        "access token": anna.access_token,
        "empty": "",
        "no token": "abc",
        "cut": anna.refresh_token[:-3],
        "another key": crafted(key=b"k" * 32),
        "none": crafted(algorithm="none", key=""),
        "HS384": crafted(algorithm="HS384"),
        "another person": crafted(sub=str(vault.user(bert.email).id)),
        "another session": crafted(jti=f"{uuid.uuid4()}.0"),
        "a session of two ids": crafted(sid=str(uuid.uuid4())),
        "no generation": crafted(jti=claims_of(anna.refresh_token)["sid"]),
        "another audience": crafted(aud="elsewhere"),
        "another issuer": crafted(iss="elsewhere"),
        "expired": crafted(exp=int(vault.clock().timestamp()) - 10),
    }

    answers = {what: vault.refresh(token) for what, token in tokens.items()}

    assert {what: refusal(answer) for what, answer in answers.items()} == dict.fromkeys(tokens, (401, "unauthorized"))
    assert anna.refresh().status_code == 200


def test_a_session_ends_after_a_week_without_use_and_after_a_month_in_any_case(vault: Vault, anna: Person) -> None:
    token = anna.refresh_token
    for _ in range(4):
        vault.clock.advance(days=6, hours=23)
        token = vault.refresh(token).json["refresh_token"]
    vault.clock.advance(days=3)

    assert refusal(vault.refresh(token)) == (401, "unauthorized")
    bert = vault.member("bert@example.org")
    vault.clock.advance(days=7, seconds=10)
    assert refusal(bert.refresh()) == (401, "unauthorized")


def signed_in_thrice(vault: Vault) -> list[Person]:
    # In the past, since PyJWT takes no access token of the future.
    vault.clock.advance(minutes=-10)
    people = [vault.member()]
    for _ in range(2):
        vault.clock.advance(minutes=1)
        people.append(vault.sign_in("anna@example.org"))
    return people


@pytest.mark.parametrize(
    ("scope", "left"),
    [(None, [True, True, False]), ("local", [True, True, False]), ("others", [False, False, True]),
     ("global", [False, False, False])],
)  # fmt: skip
def test_logout_ends_the_sessions_of_its_scope(vault: Vault, scope: str | None, left: list[bool]) -> None:
    people, bert = signed_in_thrice(vault), vault.member("bert@example.org")

    answer = people[2].logout(**({} if scope is None else {"json": {"scope": scope}}))

    assert answer.status_code == 204
    assert [works(person) for person in people] == left
    assert [person.refresh().status_code == 200 for person in people] == left
    assert works(bert)
    (event,) = vault.audit_trail("user.logout")
    assert event.details == {"scope": scope or "local", "sessions": left.count(False)}


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"json": {"scope": "everywhere"}}, (422, "validation_failed")),
        ({"json": {"scopes": "local"}}, (422, "validation_failed")),
        ({"json": []}, (422, "validation_failed")),
        ({"data": "scope=local", "content_type": "text/plain"}, (415, "unsupported_media_type")),
        ({"data": "{", "content_type": "application/json"}, (400, "malformed_json")),
    ],
    ids=["scope", "field", "list", "type", "json"],
)
def test_a_bad_logout_ends_nothing(anna: Person, kwargs: dict[str, Any], expected: tuple[int, str]) -> None:
    assert refusal(anna.logout(**kwargs)) == expected
    assert works(anna)


def test_sessions_are_listed_newest_first_page_by_page(vault: Vault) -> None:
    people, bert = signed_in_thrice(vault), vault.member("bert@example.org")
    people[0].logout()

    page = people[2].sessions(limit=1).json
    rest = people[2].sessions(limit=1, cursor=page["next_cursor"]).json

    assert [item["current"] for item in page["items"] + rest["items"]] == [True, False]
    assert rest["next_cursor"] is None
    (item,) = page["items"]
    assert set(item) == {"id", "current", "created_at", "last_used_at", "expires_at", "ip", "user_agent"}
    assert item["ip"] == "127.0.0.1"
    assert item["created_at"] > rest["items"][0]["created_at"]
    assert refusal(bert.sessions(cursor=page["next_cursor"])) == (400, "invalid_cursor")


def test_a_session_without_use_for_a_week_is_not_listed_and_opens_nothing(vault: Vault) -> None:
    people = signed_in_thrice(vault)
    ids = [item["id"] for item in people[2].sessions().json["items"]]
    a_week_ago = vault.clock() - timedelta(days=7, seconds=10)
    vault.execute(sa.update(UserSession).where(UserSession.id == uuid.UUID(ids[2])).values(refreshed_at=a_week_ago))

    assert [item["id"] for item in people[2].sessions().json["items"]] == ids[:2]
    assert [works(person) for person in people] == [False, True, True]


def test_a_session_is_ended_by_its_owner_only(vault: Vault) -> None:
    people, bert = signed_in_thrice(vault), vault.member("bert@example.org")
    ids = [item["id"] for item in people[2].sessions().json["items"]]

    by_bert = bert.delete(f"{AUTH}/sessions/{ids[1]}")
    unknown = people[2].delete(f"{AUTH}/sessions/{uuid.uuid4()}")
    ended = people[2].delete(f"{AUTH}/sessions/{ids[1]}")
    again = people[2].delete(f"{AUTH}/sessions/{ids[1]}")

    assert [answer.status_code for answer in (by_bert, unknown, ended, again)] == [404, 404, 204, 404]
    assert [works(person) for person in people] == [True, False, True]
    assert [str(event.target_id) for event in vault.audit_trail("session.revoked")] == [ids[1]]


@pytest.mark.parametrize("grace", ["0", "30"])
@POSTGRESQL
def test_twenty_concurrent_refreshes_of_a_token_have_one_child(make_vault: Callable[..., Vault], grace: str) -> None:
    vault = make_vault(REFRESH_GRACE_SECONDS=grace)
    anna = vault.member()
    answers = at_once(20, lambda _: anna.refresh())

    children = {answer.json["refresh_token"] for answer in answers if answer.status_code == 200}
    assert len(answers) == 20
    assert len(children) == 1
    refused = [refusal(answer) for answer in answers if answer.status_code != 200]
    if grace == "30":
        assert refused == []
        assert vault.refresh(children.pop()).status_code == 200
    else:
        assert sorted(set(refused)) == [(401, "token_reused"), (401, "unauthorized")]
        assert (len(refused), refused.count((401, "token_reused"))) == (19, 1)
        assert refusal(vault.refresh(children.pop())) == (401, "unauthorized")
