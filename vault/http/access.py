"""Who may use a route. How a request proves whose it is, and what becomes of a refusal, is handed in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, NoReturn, Protocol, cast

from flask import Flask, current_app, g, request

from vault.core.errors import Unauthorized
from vault.core.principal import Permission, Principal
from vault.http.api import refuse_undeclared_query
from vault.http.openapi import View, may_answer

_NAME: Final = "vault.access"

# Returns whose the request at hand is, or None where it is not of this authenticator's kind. Raises what 401 answers.
Authenticator = Callable[[], Principal | None]


class Refuse(Protocol):
    def __call__(self, principal: Principal, *, method: str, route: str) -> NoReturn:
        """Raise Forbidden, once it is audited."""


@dataclass(frozen=True, slots=True)
class _Guards:
    authenticators: Sequence[Authenticator]
    refuse: Refuse


def register(app: Flask, *, authenticators: Sequence[Authenticator], refuse: Refuse) -> None:
    """Bind the guards of routes. The first authenticator that recognises a request says whose it is."""
    app.extensions[_NAME] = _Guards(authenticators, refuse)


def principal() -> Principal:
    """Return who asks; only inside a view that `login_required` or `admin_required` guards."""
    return cast(Principal, g.principal)


def login_required(permission: Permission) -> Callable[[View], View]:
    """Let a view run only for a principal that holds the permission; documents the security scheme.

    The view gets the attribute `permission`, by which limits know what needs an account.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            g.principal = _admit(permission)
            return view(*args, **kwargs)

        documented: Any = may_answer("unauthorized")(cast(View, guarded))
        documented.permission = permission
        manual = documented._apidoc.get("manual_doc", {})
        documented._apidoc["manual_doc"] = {**manual, "security": [{"bearer": []}]}
        return cast(View, documented)

    return decorate


def admin_required(permission: Permission) -> Callable[[View], View]:
    """Let a view run for administrators only; everybody else is refused with 403, and that is audited.

    Stands above `arguments`, so that nothing else is looked at before.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            refuse_undeclared_query()
            return view(*args, **kwargs)

        guarded.refuses_undeclared_query = True  # type: ignore[attr-defined]
        return login_required(permission)(may_answer("forbidden", "audit_unavailable")(cast(View, guarded)))

    return decorate


def _admit(permission: Permission) -> Principal:
    """Return the principal of this request. Raises Unauthorized, and Forbidden for one without the permission."""
    guards = cast(_Guards, current_app.extensions[_NAME])
    found = next((who for authenticate in guards.authenticators if (who := authenticate()) is not None), None)
    if found is None:
        raise Unauthorized
    if permission not in found.permissions:
        assert request.url_rule is not None
        guards.refuse(found, method=request.method, route=request.url_rule.rule)
    return found
