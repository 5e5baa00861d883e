import re
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import jwt
import pytest

from testing.vault import Clock
from vault.auth.pending import mail_token_hash, new_mail_token
from vault.auth.sessions import ALGORITHM, AUDIENCE, ISSUER, SESSION_LIFETIME, SessionTokens, TokenPair

KEY = bytes(range(32))
MakePair = Callable[..., TokenPair]
USER, SESSION = uuid.UUID(int=1), uuid.UUID(int=2)


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.now = clock.now.replace(microsecond=0)
    return clock


@pytest.fixture
def make_pair(clock: Clock) -> MakePair:
    """Makes a pair for one session at this time."""

    def make(*, left: timedelta = SESSION_LIFETIME, generation: int = 0, key: bytes = KEY) -> TokenPair:
        times = {"refreshed_at": clock(), "session_ends": clock() + left}
        return SessionTokens(key, clock).pair(USER, SESSION, generation=generation, **times)

    return make


def claims(token: str) -> dict[str, Any]:
    return dict(jwt.decode(token, KEY, algorithms=[ALGORITHM], audience=AUDIENCE, issuer=ISSUER))


def test_both_tokens_name_the_user_and_the_session(make_pair: MakePair, clock: Clock) -> None:
    pair = make_pair()

    access, refresh = claims(pair.access_token), claims(pair.refresh_token)
    now = int(clock().timestamp())
    for found in (access, refresh):
        assert (found["sub"], found["sid"]) == (str(USER), str(SESSION))
        assert (found["iss"], found["aud"]) == ("secure-vault", "secure-vault-api")
        assert found["iat"] == found["nbf"] == now
    assert (access["type"], refresh["type"]) == ("access", "refresh")
    assert (pair.token_type, pair.expires_in) == ("Bearer", 900)


@pytest.mark.parametrize(
    ("left", "access", "refresh"),
    [
        (SESSION_LIFETIME, timedelta(minutes=15), timedelta(days=7)),
        (timedelta(days=3), timedelta(minutes=15), timedelta(days=3)),
        (timedelta(minutes=4), timedelta(minutes=4), timedelta(minutes=4)),
    ],
    ids=["new", "days-left", "minutes-left"],
)
def test_access_lives_a_quarter_of_an_hour_and_refresh_a_week_but_no_longer_than_the_session(
    make_pair: MakePair, clock: Clock, left: timedelta, access: timedelta, refresh: timedelta
) -> None:
    pair = make_pair(left=left)

    now = int(clock().timestamp())
    assert claims(pair.access_token)["exp"] == now + access.total_seconds()
    assert claims(pair.refresh_token)["exp"] == now + refresh.total_seconds()
    assert pair.expires_in == access.total_seconds()


def test_a_refresh_token_is_its_generations_and_an_access_token_is_fresh(make_pair: MakePair) -> None:
    first, again, next_one = (make_pair(generation=number) for number in (0, 0, 1))

    assert first.refresh_token == again.refresh_token != next_one.refresh_token
    assert claims(next_one.refresh_token)["jti"] == f"{SESSION}.1"
    assert claims(first.access_token)["jti"] != claims(again.access_token)["jti"]


def test_a_token_of_another_key_does_not_verify(make_pair: MakePair) -> None:
    with pytest.raises(jwt.InvalidSignatureError):
        claims(make_pair(key=bytes(32)).access_token)


def test_a_token_names_its_algorithm(make_pair: MakePair) -> None:
    assert jwt.get_unverified_header(make_pair().access_token) == {"alg": "HS256", "typ": "JWT"}


def test_a_pair_shows_no_token_in_its_repr(make_pair: MakePair) -> None:
    pair = make_pair()

    assert pair.access_token not in repr(pair)
    assert pair.refresh_token not in repr(pair)


def test_mail_tokens_are_256_random_bits_fit_for_a_link() -> None:
    tokens = {new_mail_token() for _ in range(200)}

    assert len(tokens) == 200
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", token) for token in tokens)


def test_a_mail_tokens_hash_is_its_sha256() -> None:
    assert mail_token_hash("abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    "token", ["", "\0", "ключ", "\ud800", "x" * 100_000], ids=["empty", "nul", "script", "surrogate", "long"]
)
def test_anything_that_claims_to_be_a_mail_token_has_a_hash(token: str) -> None:
    assert len(mail_token_hash(token)) == 32
