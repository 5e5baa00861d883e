"""`flask users`: administrators and accounts without the API."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime

import click

from vault.admin.listing import UserFilter, UserInfo
from vault.admin.service import Quota, UserChanges
from vault.auth.models import Role
from vault.cli.base import MAIL_ADDRESS, QUOTA, Commands, confirm, container, json_option, operator, settings
from vault.core.addresses import Address
from vault.core.errors import NotFound

_PAGE = 200

users = Commands("users", help="Accounts: invite administrators, list, disable, limit, delete.")
_email = click.argument("address", metavar="EMAIL", type=MAIL_ADDRESS)
_yes = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")


@users.command("create-admin")
@_email
@_yes
def create_admin(address: Address, yes: bool) -> None:
    """Invite EMAIL to be an administrator.

    Mails a link that sets a password, confirms the address and gives its account the role. It works for 24 hours.
    An existing account loses its password and its sessions immediately, and keeps its files; the role comes with the
    new password.
    """
    with suppress(NotFound):
        _find(address)
        confirm(
            "This address has an account. End its sessions and remove its password until the link is used?", yes=yes
        )
    container().admin.invitations.invite(operator(), address)
    click.echo("Mailed a link. The person who sets a password with it within 24 hours becomes an administrator.")


@users.command("list")
@click.option(
    "--search",
    metavar="TEXT",
    help="Part of the address or the name. A single character matches the beginning of either.",
)
@click.option("--role", type=click.Choice([role.value for role in Role]), help="Only accounts with this role.")
@click.option("--disabled/--enabled", "disabled", default=None, help="Only disabled or only enabled accounts.")
@json_option
def list_(search: str | None, role: str | None, disabled: bool | None, as_json: bool) -> None:
    """List accounts, newest first. With --json, one object a line."""
    which = UserFilter(search, Role(role) if role else None, disabled)
    # Report missing or wrong settings before the heading.
    settings()
    if not as_json:
        click.echo(
            f"{'CREATED':<10}  {'LAST LOGIN':<10}  {'ROLE':<5}  {'STATE':<11}  {'USED':>10} of {'QUOTA':<10}  EMAIL"
        )
    for user in _all(which):
        click.echo(json.dumps(asdict(user), default=_plain) if as_json else _line(user))


@users.command("disable")
@_email
def disable(address: Address) -> None:
    """Disable EMAIL's account.

    It cannot sign in, and its sessions and links end immediately. Its files stay.
    """
    _switch(address, disabled=True)


@users.command("enable")
@_email
def enable(address: Address) -> None:
    """Enable EMAIL's account, so that it can sign in again."""
    _switch(address, disabled=False)


@users.command("set-quota")
@_email
@click.argument("quota", metavar="BYTES", type=QUOTA)
def set_quota(address: Address, quota: Quota) -> None:
    """Set the quota of EMAIL's account.

    BYTES is a number, a size such as 10GiB, or `default`. A quota below the used bytes deletes nothing, and refuses
    uploads.
    """
    administration = container().admin.administration
    user = administration.change(operator(), _find(address).id, UserChanges(quota=quota))
    default = ", the default" if user.quota_is_default else ""
    click.echo(f"The quota is {_size(user.quota_bytes)}{default}; {_size(user.used_bytes)} are used.")
    if user.used_bytes > user.quota_bytes:
        click.echo("Uploads are refused until there is room again.")


@users.command("delete")
@_email
@_yes
def delete(address: Address, yes: bool) -> None:
    """Delete EMAIL's account and its files.

    The person gets a mail.
    """
    user = _find(address)
    confirm(f"Delete this account with {_size(user.used_bytes)} of files for ever?", yes=yes)
    container().admin.administration.delete(operator(), user.id)
    click.echo("Deleted. Its files are unreadable, and their objects are removed soon.")


def _find(address: Address) -> UserInfo:
    try:
        return container().admin.administration.find(address)
    except NotFound:
        raise NotFound("No account has this address.") from None


def _switch(address: Address, *, disabled: bool) -> None:
    user = _find(address)
    state = "disabled" if disabled else "enabled"
    if user.disabled == disabled:
        click.echo(f"The account is {state} already.")
        return
    container().admin.administration.change(operator(), user.id, UserChanges(disabled=disabled))
    click.echo("Disabled. Its sessions and links have ended." if disabled else "Enabled. It can sign in again.")


def _all(which: UserFilter) -> Iterator[UserInfo]:
    after = None
    while True:
        page = container().admin.administration.list(which, limit=_PAGE, after=after)
        yield from page.items
        after = page.next_after
        if after is None:
            return


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _line(user: UserInfo) -> str:
    created = user.created_at.date().isoformat()
    login = user.last_login_at.date().isoformat() if user.last_login_at else "never"
    state = "disabled" if user.disabled else "active" if user.email_verified else "unconfirmed"
    used, quota = _size(user.used_bytes), _size(user.quota_bytes)
    return f"{created}  {login:<10}  {user.role:<5}  {state:<11}  {used:>10} of {quota:<10}  {user.email}"


def _size(count: int) -> str:
    """Format with the largest unit that leaves at least one digit."""
    if count < 1024:
        return f"{count} B"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"
