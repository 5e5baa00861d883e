"""The mails of accounts."""

from typing import Final

from vault.mail.models import Lane, MailKind

_CONFIRM: Final = "{public_url}/verify-email"
_SET_PASSWORD: Final = "{frontend_base_url}/reset-password"  # noqa: S105  # a page, no password

# Mails that a stranger can cause for any address, with or without an account.
VERIFY_EMAIL: Final = MailKind("verify_email", _CONFIRM, Lane.REGISTRATION)
ALREADY_REGISTERED: Final = MailKind("already_registered", lane=Lane.REGISTRATION)
RESET_PASSWORD: Final = MailKind("reset_password", _SET_PASSWORD)
CHANGE_EMAIL: Final = MailKind("change_email", _CONFIRM)
EMAIL_CHANGE_REQUESTED: Final = MailKind("email_change_requested")
ADMIN_INVITATION: Final = MailKind("admin_invitation", _SET_PASSWORD)
REFRESH_REUSED: Final = MailKind("refresh_reused", is_limited=False)
PASSWORD_CHANGED: Final = MailKind("password_changed", is_limited=False)
EMAIL_CHANGED: Final = MailKind("email_changed", is_limited=False)
ACCOUNT_DELETED: Final = MailKind("account_deleted", is_limited=False)

KINDS: Final = tuple(kind for kind in globals().values() if isinstance(kind, MailKind))
