import uuid
from datetime import UTC, datetime, timedelta, timezone

import pytest
from itsdangerous import URLSafeSerializer

from vault.core.derived import derive_key
from vault.core.errors import InvalidCursor
from vault.http.cursors import MAX_LENGTH, Cursors

SECRET_KEY = "a secret key that is only for these tests"
AFTER = (datetime(2026, 2, 28, 23, 59, 59, 123456, tzinfo=UTC), uuid.UUID(int=0x1234))
SCOPE = f"files:{uuid.UUID(int=1)}"


@pytest.fixture
def cursors() -> Cursors:
    return Cursors(SECRET_KEY)


def test_a_cursor_comes_back_as_what_it_was(cursors: Cursors) -> None:
    assert cursors.load(cursors.dump(AFTER, scope=SCOPE), scope=SCOPE, key_type=datetime) == AFTER


def test_a_cursor_keeps_the_moment_of_another_time_zone(cursors: Cursors) -> None:
    after = (AFTER[0].astimezone(timezone(timedelta(hours=5, minutes=30))), AFTER[1])

    assert cursors.load(cursors.dump(after, scope=SCOPE), scope=SCOPE, key_type=datetime) == AFTER


def test_a_cursor_is_fit_for_a_query(cursors: Cursors) -> None:
    assert set(cursors.dump(AFTER, scope=SCOPE)) <= set(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."
    )


@pytest.mark.parametrize("other", ["", "files", f"files:{uuid.UUID(int=2)}", f"{SCOPE} ", f"audit:{uuid.UUID(int=1)}"])
def test_a_cursor_of_another_list_or_owner_is_refused(cursors: Cursors, other: str) -> None:
    cursor = cursors.dump(AFTER, scope=SCOPE)

    with pytest.raises(InvalidCursor):
        cursors.load(cursor, scope=other, key_type=datetime)


def test_a_cursor_of_another_key_is_refused(cursors: Cursors) -> None:
    with pytest.raises(InvalidCursor):
        cursors.load(Cursors(SECRET_KEY + "!").dump(AFTER, scope=SCOPE), scope=SCOPE, key_type=datetime)


def test_every_changed_character_is_noticed(cursors: Cursors) -> None:
    cursor = cursors.dump(AFTER, scope=SCOPE)

    for position in range(len(cursor) - 1):  # the last one holds two bits that base64 does not use
        other = "A" if cursor[position] != "A" else "B"
        with pytest.raises(InvalidCursor):
            cursors.load(cursor[:position] + other + cursor[position + 1 :], scope=SCOPE, key_type=datetime)


@pytest.mark.parametrize(
    "text", ["", ".", "x", "a.b", "é.é", "\0", "\ud800", "." * 1000, "A" * 10_000], ids=lambda text: ascii(text)[:12]
)
def test_a_malformed_cursor_is_refused(cursors: Cursors, text: str) -> None:
    with pytest.raises(InvalidCursor):
        cursors.load(text, scope=SCOPE, key_type=datetime)


@pytest.mark.parametrize(
    "payload", [None, 1, "ab", [], ["2026-02-28"], ["yesterday", "0" * 32], [1, "0" * 32], [AFTER[0].isoformat(), "x"]]
)
def test_a_signed_payload_of_another_shape_is_refused(cursors: Cursors, payload: object) -> None:
    signer = URLSafeSerializer(derive_key(SECRET_KEY, "cursor"), salt=SCOPE, signer_kwargs={"key_derivation": "hmac"})

    with pytest.raises(InvalidCursor):
        cursors.load(str(signer.dumps(payload)), scope=SCOPE, key_type=datetime)


@pytest.mark.parametrize(
    "key", ["notes.txt", "", 'a"\\\n', "🦀机密", "ΐ".casefold() * 255, 0, 2**62], ids=lambda key: ascii(key)[:12]
)
def test_a_cursor_carries_texts_and_numbers(cursors: Cursors, key: str | int) -> None:
    cursor = cursors.dump((key, AFTER[1]), scope=SCOPE)

    assert cursors.load(cursor, scope=SCOPE, key_type=type(key)) == (key, AFTER[1])
    assert len(cursor) <= MAX_LENGTH


@pytest.mark.parametrize(("key", "key_type"), [("2026", int), (2026, str), (2026, datetime), ("x", datetime)])
def test_a_key_of_another_type_is_refused(cursors: Cursors, key: str | int, key_type: type) -> None:
    with pytest.raises(InvalidCursor):
        cursors.load(cursors.dump((key, AFTER[1]), scope=SCOPE), scope=SCOPE, key_type=key_type)
