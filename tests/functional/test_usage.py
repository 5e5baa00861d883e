"""How much of one's room is taken, and how many files one may have."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from testing.vault import FILES, POSTGRESQL, Body, Person, Vault, at_once, refusal
from vault.auth.models import User
from vault.core.addresses import parse_address
from vault.core.principal import Principal
from vault.objects.models import StorageAccount

NOTHING_OLD = {"versions_bytes": 0, "trash_bytes": 0}


def test_usage_counts_what_is_there(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(DEFAULT_QUOTA_BYTES="1000")
    anna, bert = vault.member(), vault.member("bert@example.org", quota_bytes=0)
    seen: list[Any] = [anna.get(f"{FILES}/usage").json]
    files = [anna.upload(b"x" * size) for size in (0, 10, 100)]
    anna.delete(f"{FILES}/{files[1]['id']}")

    anna.send(Body(b"y" * 50, at=25, then=lambda: seen.append(anna.get(f"{FILES}/usage").json)), length=50)

    assert seen == [
        {"used_bytes": 0, "reserved_bytes": 0, "quota_bytes": 1000, "file_count": 0, **NOTHING_OLD},
        {"used_bytes": 100, "reserved_bytes": 50, "quota_bytes": 1000, "file_count": 2, **NOTHING_OLD},
    ]
    assert anna.get(f"{FILES}/usage").json == {**seen[1], "used_bytes": 150, "reserved_bytes": 0, "file_count": 3}
    assert bert.get(f"{FILES}/usage").json == {**seen[0], "quota_bytes": 0}


def test_each_account_has_its_storage_from_the_beginning_to_the_end(vault: Vault) -> None:
    def have_storage() -> list[str]:
        emails = {user.id: user.email for user in vault.scalars(sa.select(User))}
        assert set(vault.scalars(sa.select(StorageAccount.owner_id))) == set(emails)
        return sorted(emails.values())

    anna = vault.sign_up()
    for _ in range(2):
        vault.register("bert@example.org")
        vault.register("dora@example.org")
        vault.container.admin.invitations.invite(Principal(), parse_address("carl@example.org"))
    made = have_storage()
    # Takes the address from the account that has not confirmed it.
    anna.change_email("dora@example.org")
    vault.verify(vault.mailed_token("dora@example.org"))
    taken = have_storage()
    anna.delete_account()
    erased = have_storage()
    vault.clock.advance(days=8)
    vault.container.auth.sweeper.sweep(Principal())

    assert made == ["anna@example.org", "bert@example.org", "carl@example.org", "dora@example.org"]
    assert (taken, erased) == (made[1:], made[1:3])
    assert have_storage() == []


def test_usage_takes_a_token_and_no_parameters(vault: Vault, anna: Person) -> None:
    assert refusal(vault.client.get(f"{FILES}/usage")) == (401, "unauthorized")
    assert refusal(anna.get(f"{FILES}/usage?of=bert")) == (422, "validation_failed")


def test_a_file_too_many_is_refused_before_its_body_is_read(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(MAX_FILES_PER_USER="2")
    anna, bert = vault.member(), vault.member("bert@example.org")
    files = [anna.upload(b"x") for _ in range(2)]
    body = Body(b"x" * 1000)

    refused = anna.send(body, length=1000)
    deleted = anna.delete(f"{FILES}/{files[0]['id']}")

    assert refusal(refused) == (413, "too_many_files")
    assert body.position == 0
    assert deleted.status_code == 204
    assert [anna.upload(b"x")["size"], bert.upload(b"x")["size"]] == [1, 1]
    assert vault.accounts_balance()


def test_uncounted_files_are_counted_by_the_next_upload(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(MAX_FILES_PER_USER="3")
    anna = vault.member()
    files = [anna.upload(b"x") for _ in range(2)]
    vault.execute(sa.text("UPDATE storage_accounts SET object_count = NULL"))
    anna.delete(f"{FILES}/{files[0]['id']}")

    before = (anna.get(f"{FILES}/usage").json["file_count"], vault.account().object_count)
    anna.upload(b"x")

    assert before == (1, None)
    assert (anna.get(f"{FILES}/usage").json["file_count"], vault.account().object_count) == (2, 2)
    assert anna.upload(b"x")["size"] == 1
    assert refusal(anna.send(b"x", length=1)) == (413, "too_many_files")


@pytest.mark.parametrize("length", [1, None])
def test_an_upload_that_runs_counts_as_a_file(make_vault: Callable[..., Vault], length: int | None) -> None:
    vault = make_vault(MAX_FILES_PER_USER="2")
    anna = vault.member()
    anna.upload(b"x")
    inner: list[Any] = []

    outer = anna.send(Body(b"x", then=lambda: inner.append(anna.send(b"y", length=length))), length=length)

    assert outer.status_code == 201
    assert refusal(inner[0]) == (413, "too_many_files")
    assert vault.file_states() == ["ready", "ready"]
    assert vault.accounts_balance()


@POSTGRESQL
def test_concurrent_uploads_cannot_pass_the_number(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(MAX_FILES_PER_USER="3")
    anna = vault.member()

    answers = at_once(8, lambda _: anna.send(b"x", length=1))

    assert sorted(answer.status_code for answer in answers) == [201] * 3 + [413] * 5
    assert {refusal(answer) for answer in answers if answer.status_code == 413} == {(413, "too_many_files")}
    assert vault.file_states() == ["ready"] * 3
    assert vault.accounts_balance()
