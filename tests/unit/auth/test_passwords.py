import time
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from argon2 import PasswordHasher, extract_parameters
from argon2.exceptions import VerifyMismatchError
from zxcvbn.matching import L33T_TABLE, enumerate_l33t_subs, relevant_l33t_subtable

from testing.machine import slowness
from testing.passwords import CHEAP_HASHER, PASSWORD, CountingHasher, Gate, SlowJudge
from testing.servers import wait_until
from vault.auth.passwords import MAX_LENGTH, Passwords, _cheap_to_judge, check_strength
from vault.core.errors import Busy, InputRefused

STRONG = "correct giraffe battery lamp"


@pytest.fixture
def passwords() -> Passwords:
    return Passwords(CHEAP_HASHER, concurrency=4)


class SlowHasher(Gate, PasswordHasher):
    """Hashes when its gate is open, as it is at first."""

    def __init__(self) -> None:
        super().__init__()
        PasswordHasher.__init__(self, time_cost=1, memory_cost=8, parallelism=1)
        self.go_on.set()

    def hash(self, password: str | bytes, **kwargs: Any) -> str:
        self.wait()
        return super().hash(password, **kwargs)


# --- hashing --------------------------------------------------------------------------------------------------------


def test_a_password_matches_its_hash_and_no_other(passwords: Passwords) -> None:
    kept = passwords.hash(PASSWORD)

    assert passwords.matches(kept, PASSWORD) is True
    assert passwords.matches(kept, PASSWORD + " ") is False
    assert passwords.matches(kept, PASSWORD.upper()) is False
    assert passwords.matches(kept, "") is False
    assert PASSWORD not in kept


def test_two_hashes_of_one_password_differ(passwords: Passwords) -> None:
    assert passwords.hash(PASSWORD) != passwords.hash(PASSWORD)


@pytest.mark.parametrize(
    "password",
    ["null \0 byte in the middle", "\0" * 12, "🔐🐘🌋🧊 elephants on ice", "пароль из пяти слов", "x" * MAX_LENGTH],
    ids=["nul", "only-nul", "emoji", "cyrillic", "longest"],
)
def test_every_character_of_a_password_counts(passwords: Passwords, password: str) -> None:
    kept = passwords.hash(password)

    assert passwords.matches(kept, password) is True
    assert passwords.matches(kept, password[:-1]) is False
    assert passwords.matches(kept, password.replace("\0", "")) is ("\0" not in password)


def test_a_password_matches_its_other_unicode_forms(passwords: Passwords) -> None:
    composed, decomposed = "Übergrößenträger 42", unicodedata.normalize("NFD", "Übergrößenträger 42")
    fullwidth = "Ｕ２０２６ ｗｉｄｅ ｌｅｔｔｅｒｓ"

    assert composed != decomposed
    assert passwords.matches(passwords.hash(composed), decomposed) is True
    assert passwords.matches(passwords.hash(fullwidth), "U2026 wide letters") is True


@pytest.mark.parametrize("extra", [1, 2, 10_000])
def test_a_password_longer_than_any_accepted_is_wrong(passwords: Passwords, extra: int) -> None:
    longest = "a" * MAX_LENGTH

    assert passwords.matches(passwords.hash(longest), longest + "a" * extra) is False


def test_a_huge_guess_costs_as_much_as_a_short_one() -> None:
    hasher = CountingHasher()
    passwords = Passwords(hasher, concurrency=1)

    # Each of these becomes 18 characters under NFKC.
    passwords.matches(None, "\ufdfa" * 1_000_000)

    assert len(hasher.verified[0][1]) == MAX_LENGTH + 1


def test_without_a_hash_the_same_work_is_done_and_the_answer_is_no() -> None:
    hasher = CountingHasher()
    passwords = Passwords(hasher, concurrency=1)

    answers = [passwords.matches(None, guess) for guess in (PASSWORD, "", "a password that nobody has")]

    assert answers == [False, False, False]
    assert len({used for used, _ in hasher.verified}) == 1
    assert len(hasher.verified) == 3
    with pytest.raises(VerifyMismatchError):
        CHEAP_HASHER.verify(hasher.verified[0][0], PASSWORD)


def test_the_hash_that_stands_for_none_costs_what_others_do() -> None:
    hasher = CountingHasher()

    Passwords(hasher, concurrency=1).matches(None, PASSWORD)

    assert hasher.hashed == 0
    assert extract_parameters(hasher.verified[0][0]) == extract_parameters(hasher.hash(PASSWORD))


@pytest.mark.parametrize(
    "kept",
    ["", "x", "$2b$12$abcdefghijklmnopqrstuv", "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$", CHEAP_HASHER.hash("x")[:-8]],
    ids=["empty", "no-hash", "bcrypt", "without-digest", "cut"],
)
def test_a_malformed_hash_matches_no_password(passwords: Passwords, kept: str) -> None:
    assert passwords.matches(kept, PASSWORD) is False


# --- at most so many at once ----------------------------------------------------------------------------------------


@pytest.fixture
def hasher() -> Iterator[SlowHasher]:
    hasher = SlowHasher()
    yield hasher
    hasher.go_on.set()


def test_no_more_hashes_run_concurrently_than_allowed(hasher: SlowHasher) -> None:
    passwords = Passwords(hasher, concurrency=2, wait_seconds=20)
    hasher.go_on.clear()

    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(passwords.hash, PASSWORD) for _ in range(8)]
        hasher.go_on.set()
        hashes = {future.result(timeout=120) for future in done}

    assert len(hashes) == 8
    assert hasher.most_at_once <= 2


def test_a_hash_that_waits_too_long_is_refused_as_busy_and_the_next_one_runs(hasher: SlowHasher) -> None:
    passwords = Passwords(hasher, concurrency=1, wait_seconds=0.05)
    kept = passwords.hash(PASSWORD)
    hasher.go_on.clear()

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(passwords.hash, PASSWORD)
        wait_until(lambda: hasher.running == 1, seconds=120)
        with pytest.raises(Busy):
            passwords.hash(PASSWORD)
        with pytest.raises(Busy):
            passwords.matches(kept, PASSWORD)
        hasher.go_on.set()
        first.result(timeout=120)

    assert passwords.matches(kept, PASSWORD) is True


def test_a_failed_check_gives_its_slot_back() -> None:
    passwords = Passwords(CHEAP_HASHER, concurrency=1, wait_seconds=0.05)
    kept = passwords.hash(PASSWORD)

    assert [passwords.matches(tried, "wrong") for tried in [kept] * 5 + ["broken"]] == [False] * 6
    assert passwords.matches(kept, PASSWORD) is True


# --- strength -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "password",
    [
        pytest.param(STRONG, id="phrase"),
        pytest.param("k7#Qz!m2Vx9p", id="twelve"),
        pytest.param("zq" + "7Kf#" * 31 + "xy", id="longest"),
        pytest.param("\0nul\0bytes\0are\0fine", id="nul"),
        pytest.param("🔐🐘🌋🧊🪐🛰🧬🦠🪨🪵🫖🪁", id="emoji"),
        pytest.param("пять случайных слов вместе", id="cyrillic"),
    ],
)
def test_a_password_that_is_hard_to_guess_is_accepted(password: str) -> None:
    check_strength(password, ["anna@example.org", "Anna Berg"])


def refusal(password: str, hints: tuple[str, ...] = (), **kwargs: str) -> dict[str, Any]:
    with pytest.raises(InputRefused) as caught:
        check_strength(password, hints, **kwargs)
    assert password not in str(caught.value) + repr(caught.value.errors)
    return dict(caught.value.errors)


LENGTH = {"password": ["Must have 12 to 128 characters."]}
GUESSABLE = {"password": ["Too easy to guess. Use a longer phrase or less common words."]}


@pytest.mark.parametrize(
    "password",
    [
        pytest.param("k7#Qz!m2Vx9", id="eleven"),
        pytest.param("k7#Qz!m2Vx9p" * 11, id="132"),
        pytest.param("e\u0301" * 6 + "k7#Qz", id="eleven-after-nfkc"),
        pytest.param("k7#Qz!m2" + "\ufdfa" * 10, id="188-after-nfkc"),
        pytest.param("\ufdfa", id="one-that-nfkc-makes-18"),
        pytest.param("x" * 1_000_000, id="a-million"),
    ],
)
def test_length_counts_before_and_after_normalising(password: str) -> None:
    assert refusal(password) == LENGTH


@pytest.mark.parametrize(
    "password",
    [
        pytest.param("passwordpassword", id="common"),
        pytest.param("aaaaaaaaaaaaaaaaaaaa", id="repeated"),
        pytest.param("qwertyuiopasdf", id="keyboard"),
        pytest.param("123456789012", id="digits"),
        pytest.param("ｐａｓｓｗｏｒｄｐａｓｓｗｏｒｄ", id="common-in-wide-letters"),
        pytest.param("a" * 32 + "k7#Qz!m2Vx9pL0w", id="weak-in-its-first-32"),
    ],
)
def test_a_password_that_is_easy_to_guess_is_refused(password: str) -> None:
    assert refusal(password) == GUESSABLE


@pytest.mark.parametrize(
    ("password", "hints"),
    [
        ("wolfeschlegelstein", ("wolfeschlegelstein@example.org", "wolfeschlegelstein", "")),
        ("Wolfeschlegelstein1", ("x@example.org", "x", "Wolfeschlegelstein")),
    ],
    ids=["address", "name"],
)
def test_a_persons_own_words_count_as_known(password: str, hints: tuple[str, ...]) -> None:
    check_strength(password, [])

    assert refusal(password, hints) == GUESSABLE


def test_the_refusal_names_the_field_that_it_is_told() -> None:
    assert list(refusal("short", field="new_password")) == ["new_password"]


@pytest.mark.parametrize("pattern", ["\\x", "a1A!", "((((", "aaaa1", "пп"])
def test_judging_a_hostile_password_is_quick(pattern: str) -> None:
    started = time.monotonic()

    for password in (pattern * 128)[:MAX_LENGTH], (pattern[::-1] * 128)[:MAX_LENGTH]:
        try:
            check_strength(password, ["a" * 64 + "@example.org", "b" * 200])
        except InputRefused:
            continue

    assert time.monotonic() - started < 3 * slowness()


def test_one_password_is_judged_at_a_time_and_one_that_waits_too_long_is_refused_for_now() -> None:
    judge = SlowJudge()
    passwords = Passwords(CHEAP_HASHER, concurrency=4, wait_seconds=0.2, judge=judge)

    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(passwords.require_strength, STRONG, [])
        wait_until(lambda: judge.running == 1)
        others = [threads.submit(passwords.require_strength, STRONG, []) for _ in range(7)]
        refusals = [other.exception(timeout=20) for other in others]
        judge.go_on.set()

    assert {type(refusal) for refusal in refusals} == {Busy}
    assert first.exception() is None
    assert judge.most_at_once == 1


def test_threads_that_wait_to_judge_and_to_hash_are_limited_apart_and_more_are_refused_without_a_wait() -> None:
    judge = SlowJudge()
    passwords = Passwords(CHEAP_HASHER, concurrency=1, wait_seconds=20, most_waiting=1, judge=judge)

    with ThreadPoolExecutor(3) as threads:
        judged = [threads.submit(passwords.require_strength, STRONG, []) for _ in range(2)]
        wait_until(lambda: passwords._waiting_to_judge._value == 0)
        with pytest.raises(Busy):
            passwords.require_strength(STRONG, [])
        with passwords._slot(passwords._slots, passwords._waiting):
            hashed = threads.submit(passwords.hash, STRONG)
            wait_until(lambda: hashed.done() or passwords._waiting._value == 0)
            with pytest.raises(Busy):
                passwords.hash(STRONG)
        judge.go_on.set()

    assert [future.exception() for future in [*judged, hashed]] == [None] * 3


def test_a_password_of_the_wrong_length_is_refused_without_a_judgement() -> None:
    passwords = Passwords(CHEAP_HASHER, concurrency=1, wait_seconds=0, judge=SlowJudge())

    with pytest.raises(InputRefused):
        passwords.require_strength("short", [])


def test_the_library_is_given_only_so_many_ways_to_read_signs_as_letters() -> None:
    # It tries them all, and each costs as much as a whole password without any.
    every_sign = "".join(sorted({sign for signs in L33T_TABLE.values() for sign in signs}))

    judged = _cheap_to_judge(every_sign)

    assert readings(every_sign) > 500
    assert readings(judged) <= 32
    assert len(judged) == len(every_sign)


def readings(password: str) -> int:
    return len(enumerate_l33t_subs(relevant_l33t_subtable(password, L33T_TABLE)))


@pytest.mark.parametrize(
    "password", ["p4$$w0rd p4$$w0rd!", "correct giraffe b4ttery lamp", "12345678901234567890", "!@#$%^&*()_+ zebra"]
)
def test_a_password_that_has_few_readings_is_judged_as_it_is(password: str) -> None:
    assert _cheap_to_judge(password) == password
