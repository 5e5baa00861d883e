"""`flask users`, as an operator types it: what it prints, what it changes, and the first administrator."""

import json
import re
import uuid
from datetime import timedelta
from typing import Any

import pytest

from testing.passwords import NEW_PASSWORD, PASSWORD
from testing.vault import BOTH_DATABASES, POSTGRESQL, Person, Vault, at_once, refusal, works
from vault.auth.models import User
from vault.cli.base import operator
from vault.core.addresses import parse_address
from vault.core.principal import Principal
from vault.objects.models import StorageAccount

pytestmark = pytest.mark.one_database

BOSS = "boss@example.org"
USERS = "/api/v1/admin/users"
THEIRS = "the password of a stranger"


def accept(vault: Vault, password: str = NEW_PASSWORD) -> Any:
    """Use the newest link."""
    return vault.reset(vault.mailed_token(BOSS), password)


# The first administrator


@BOTH_DATABASES
def test_the_first_administrator_comes_from_a_mail(vault: Vault) -> None:
    shown = vault.command("users", "create-admin", BOSS)

    invited = vault.user(BOSS)
    assert (shown.exit_code, "Mailed a link" in shown.stdout) == (0, True)
    assert (invited.password_hash, invited.email_verified_at, invited.role) == (None, None, "user")
    token = vault.mailed_token(BOSS)
    assert refusal(vault.reset(token, "passwordpassword")) == (422, "validation_failed")
    assert vault.user(BOSS).role == "user"
    assert [vault.reset(token).status_code for _ in range(2)] == [204, 400]
    boss = vault.sign_in(BOSS, NEW_PASSWORD)
    assert boss.get(USERS).status_code == 200
    assert vault.user(BOSS).email_verified_at is not None


def test_the_page_of_the_invitation_makes_an_administrator(vault: Vault) -> None:
    vault.command("users", "create-admin", BOSS)
    token = vault.mailed_token(BOSS)
    (mail,) = vault.mailer.sent

    page = vault.client.get("/reset-password", query_string={"token": token})
    opened = vault.user(BOSS).role
    done = vault.client.post("/reset-password", data={"token": token, "new_password": NEW_PASSWORD})

    assert re.search(rf"{re.escape(vault.settings.site.public_url)}/reset-password\?token={token}\s", mail.text)
    assert (page.status_code, opened, done.status_code) == (200, "user", 200)
    assert vault.user(BOSS).role == "admin"


@BOTH_DATABASES
def test_an_account_that_is_there_is_asked_about_and_loses_password_and_sessions(vault: Vault) -> None:
    boss = vault.member(BOSS)
    stored = boss.upload(b"content")
    link = vault.reset_token(BOSS)

    declined = vault.command("users", "create-admin", BOSS, input="n\n")
    untouched = works(boss)
    agreed = vault.command("users", "create-admin", BOSS, input="y\n")

    assert (declined.exit_code, agreed.exit_code, untouched) == (1, 0, True)
    assert "This address has an account" in declined.stdout
    assert not works(boss)
    assert vault.login(BOSS, PASSWORD).status_code == 401
    assert refusal(vault.reset(link)) == (400, "invalid_token")
    assert vault.user(BOSS).role == "user"
    (event,) = vault.audit_trail("admin.invited")
    assert event.details.items() >= {"new_account": False, "sessions": 1}.items()
    assert accept(vault).status_code == 204
    back = vault.sign_in(BOSS, NEW_PASSWORD)
    assert back.get(USERS).status_code == 200
    assert back.download(stored["id"]) == b"content"


def test_an_earlier_registrant_does_not_become_an_administrator(vault: Vault) -> None:
    theirs = vault.confirmation_token(BOSS, THEIRS)
    assert vault.command("users", "create-admin", "--yes", BOSS).exit_code == 0

    # Also after it: the newest registration of an address that nobody confirmed counts, but not for its role.
    early = vault.verify(theirs, THEIRS)
    vault.register(BOSS, THEIRS)

    assert refusal(early) == (400, "invalid_token")
    assert vault.user(BOSS).role == "user"
    assert vault.command("users", "create-admin", "--yes", BOSS).exit_code == 0
    assert accept(vault).status_code == 204
    assert vault.login(BOSS, THEIRS).status_code == 401
    assert vault.sign_in(BOSS, NEW_PASSWORD).get(USERS).status_code == 200


def test_another_way_to_a_password_makes_no_administrator_and_ends_the_invitation(vault: Vault) -> None:
    vault.command("users", "create-admin", BOSS)
    invitation = vault.mailed_token(BOSS)
    vault.forgot(BOSS)

    assert accept(vault).status_code == 204
    assert vault.user(BOSS).role == "user"
    assert refusal(vault.reset(invitation)) == (400, "invalid_token")


@pytest.mark.parametrize("end", ["disable", "demote"])
def test_an_invitation_does_not_outlive_what_speaks_against_it(vault: Vault, end: str) -> None:
    root = vault.member("root@example.org", role="admin")
    vault.member(BOSS, role="admin")
    vault.command("users", "create-admin", "--yes", BOSS)
    token = vault.mailed_token(BOSS)

    if end == "disable":
        assert vault.command("users", "disable", BOSS).exit_code == 0
        assert vault.command("users", "enable", BOSS).exit_code == 0
    else:
        assert root.patch(f"{USERS}/{vault.user(BOSS).id}", json={"role": "user"}).status_code == 200

    assert refusal(vault.reset(token)) == (400, "invalid_token")


def test_an_invitation_that_cannot_be_sent_changes_nothing(vault: Vault) -> None:
    for _ in range(3):
        assert vault.command("users", "create-admin", "--yes", BOSS).exit_code == 0
    assert accept(vault).status_code == 204
    boss = vault.sign_in(BOSS, NEW_PASSWORD)
    off = vault.member("off@example.org", disabled_at=vault.clock())

    fourth = vault.command("users", "create-admin", "--yes", BOSS)
    disabled = vault.command("users", "create-admin", "--yes", off.email)

    assert (fourth.exit_code, disabled.exit_code) == (1, 1)
    assert "within the hour" in fourth.stderr
    assert "(user_disabled)" in disabled.stderr
    assert works(boss)
    assert len(vault.audit_trail("admin.invited")) == 3


@POSTGRESQL
def test_concurrent_invitations_make_one_account(vault: Vault) -> None:
    at_once(3, lambda _: vault.container.admin.invitations.invite(operator(), parse_address(BOSS)))

    assert vault.user(BOSS).password_version == 3
    # Each ends the one before it.
    assert len(vault.mails()) == 1
    assert [e.details["new_account"] for e in vault.audit_trail("admin.invited")].count(True) == 1


def test_an_unused_invitation_is_swept_like_a_registration(vault: Vault) -> None:
    vault.register(BOSS)
    vault.clock.advance(days=6)
    vault.command("users", "create-admin", "--yes", BOSS)

    vault.clock.advance(days=6)
    vault.container.auth.sweeper.sweep(Principal())
    assert vault.user(BOSS).role == "user"
    vault.clock.advance(days=1)
    vault.container.auth.sweeper.sweep(Principal())

    assert "No account" in vault.command("users", "enable", BOSS).stderr


# The others


def test_disable_and_enable_say_what_they_did(vault: Vault, anna: Person) -> None:
    acts = ("enable", "disable", "disable", "enable", "enable")

    shown = [vault.command("users", act, "Anna@EXAMPLE.org") for act in acts]

    assert [result.exit_code for result in shown] == [0] * 5
    assert [result.stdout for result in shown] == [
        "The account is enabled already.\n",
        "Disabled. Its sessions and links have ended.\n",
        "The account is disabled already.\n",
        "Enabled. It can sign in again.\n",
        "The account is enabled already.\n",
    ]
    assert not works(anna)
    assert works(vault.sign_in(anna.email))
    assert [len(vault.audit_trail(f"admin.user_{what}")) for what in ("disabled", "enabled")] == [1, 1]


@pytest.mark.parametrize(
    ("given", "bytes_", "shown"),
    [
        ("0", 0, "0 B"), ("500", 500, "500 B"), ("10GiB", 10 * 1024**3, "10.0 GiB"),
        ("1536KiB", 1536 * 1024, "1.5 MiB"),
        ("2TiB", 2 * 1024**4, "2.0 TiB"), ("7B", 7, "7 B"), ("default", None, "10.0 GiB, the default"),
    ],
)  # fmt: skip
def test_a_quota_is_set_in_units(vault: Vault, anna: Person, given: str, bytes_: int | None, shown: str) -> None:
    vault.change_user(quota_bytes=5)

    result = vault.command("users", "set-quota", anna.email, given)

    assert (result.exit_code, result.stdout) == (0, f"The quota is {shown}; 0 B are used.\n")
    assert vault.account().quota_bytes == bytes_


def test_a_quota_below_what_is_used_is_allowed_and_said(vault: Vault, anna: Person) -> None:
    stored = anna.upload(b"content")

    shown = vault.command("users", "set-quota", anna.email, "3")

    assert shown.stdout == "The quota is 3 B; 7 B are used.\nUploads are refused until there is room again.\n"
    assert anna.download(stored["id"]) == b"content"
    assert refusal(anna.send(b"x", length=1)) == (413, "quota_exceeded")


def test_delete_asks_and_then_leaves_nothing(vault: Vault, anna: Person) -> None:
    anna.upload(b"x" * 2048)

    declined = vault.command("users", "delete", anna.email, input="n\n")
    untouched = works(anna)
    done = vault.command("users", "delete", anna.email, input="y\n")
    gone = vault.command("users", "delete", "--yes", anna.email)

    assert (declined.exit_code, done.exit_code, gone.exit_code, untouched) == (1, 0, 1, True)
    assert "Delete this account with 2.0 KiB of files for ever?" in declined.stdout
    assert "Deleted." in done.stdout
    assert "No account has this address. (not_found)" in gone.stderr
    assert [row.encrypted_data_key for row in vault.files()] == [None]
    assert vault.mails() == [(anna.email, "Your Secure Vault account was deleted")]
    assert (vault.files(), vault.objects()) == ([], [])


@pytest.mark.parametrize("arguments", [["disable"], ["delete", "--yes"]], ids=lambda value: value[0])
def test_no_command_takes_the_last_administrator_away(vault: Vault, arguments: list[str]) -> None:
    root = vault.member(BOSS, role="admin")

    shown = vault.command("users", *arguments, BOSS)

    assert shown.exit_code == 1
    assert "(last_admin)" in shown.stderr
    assert root.get(USERS).status_code == 200
    (event,) = vault.audit_trail(f"admin.user_{arguments[0]}d")
    assert (event.outcome, event.reason) == ("failed", "last_admin")


@BOTH_DATABASES
def test_user_lists_show_all_accounts_or_the_filtered_ones(vault: Vault) -> None:
    for number in range(3):
        vault.clock.advance(seconds=1)
        vault.member(f"person{number}@example.org", used_bytes=1536, quota_bytes=10 * 1024**3)
    vault.member(BOSS, role="admin")
    vault.register("new@example.org")
    vault.change_user("person1@example.org", disabled_at=vault.clock(), last_login_at=vault.clock() - timedelta(days=9))

    shown = vault.command("users", "list")
    machine = [json.loads(line) for line in vault.command("users", "list", "--json").stdout.splitlines()]

    def listed(*options: str) -> list[str]:
        lines = vault.command("users", "list", "--json", *options).stdout.splitlines()
        return sorted(json.loads(line)["email"].partition("@")[0] for line in lines)

    head, *lines = shown.stdout.splitlines()
    today, then = vault.clock().date(), (vault.clock() - timedelta(days=9)).date()
    assert (shown.exit_code, len(lines), head.split()[0], head.split()[-1]) == (0, 5, "CREATED", "EMAIL")
    assert f"{today}  {then}  user   disabled        1.5 KiB of 10.0 GiB    person1@example.org" in lines
    assert f"{today}  never       admin  active              0 B of 10.0 GiB    {BOSS}" in lines
    assert any("unconfirmed" in line and "new@example.org" in line for line in lines)
    (boss,) = (user for user in machine if user["email"] == BOSS)
    assert boss["id"] == str(vault.user(BOSS).id)
    assert boss["created_at"] == vault.user(BOSS).created_at.isoformat()
    assert boss.keys() == {
        "id", "email", "full_name", "role", "email_verified", "disabled", "created_at", "last_login_at",
        "used_bytes", "quota_bytes", "quota_is_default",
    }  # fmt: skip
    assert listed("--role", "admin") == ["boss"]
    assert listed("--disabled") == ["person1"]
    assert listed("--enabled", "--role", "user") == ["new", "person0", "person2"]
    assert listed("--search", "PERSON") == ["person0", "person1", "person2"]


def test_a_list_goes_on_over_many_pages(vault: Vault) -> None:
    now = vault.clock()
    people = [User(id=uuid.uuid4(), email=f"p{n}@x.org", email_key=f"p{n}@x.org", created_at=now) for n in range(401)]
    vault.add(*people)
    vault.add(*(StorageAccount(owner_id=person.id) for person in people))

    lines = vault.command("users", "list", "--json").stdout.splitlines()

    assert len({json.loads(line)["email"] for line in lines}) == len(lines) == 401


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["create-admin"], 2, "Missing argument 'EMAIL'"),
        (["create-admin", "no address"], 2, "This is not a mail address."),
        (["create-admin", BOSS, "a password"], 2, "unexpected extra argument"),
        (["disable", "%@example.org\udcff"], 2, "This is not a mail address."),
        (["disable", "nobody@example.org"], 1, "No account has this address."),
        (["enable", "nobody@example.org"], 1, "No account has this address."),
        (["set-quota", "nobody@example.org", "5"], 1, "No account has this address."),
        (["set-quota", BOSS], 2, "Missing argument 'BYTES'"),
        *(
            (["set-quota", BOSS, "--", given], 2, "Give a number of bytes")
            for given in ("-1", "10GB", "1.5GiB", str(2**63), "9000000TiB", "٥", "none")
        ),
        (["list", "--role", "root"], 2, "'root' is not one of"),
        (["list", "--search", ""], 1, "search: Must have at least 1 character."),
        (["list", "--search", "Gr\udcfc\udcdfe"], 1, "search: Contains invalid characters."),
    ],
    ids=lambda value: " ".join(value).encode("ascii", "replace").decode() if isinstance(value, list) else "",
)
def test_bad_input_is_told_in_a_line(vault: Vault, arguments: list[str], status: int, message: str) -> None:
    shown = vault.command("users", *arguments)

    assert shown.exit_code == status
    assert message in shown.stderr
    assert "Traceback" not in shown.output
