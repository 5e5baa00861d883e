"""Access to routes. Features pass in authenticators, and what a refusal does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, NoReturn, Protocol, cast

from flask import Flask, current_app, g, request

from vault.core.errors import Unauthorized
from vault.core.principal import Permission, Principal
from vault.http.openapi import View, may_answer
from vault.http.requests import refuse_undeclared_query

_NAME: Final = "vault.access"

# Returns the principal of this request, or None if it has no such credentials. Raises what 401 answers.
Authenticator = Callable[[], Principal | None]


class Refuse(Protocol):
    def __call__(self, principal: Principal, *, method: str, route: str) -> NoReturn:
        """Raise Forbidden after auditing it."""


@dataclass(frozen=True, slots=True)
class _Guards:
    authenticators: Sequence[Authenticator]
    refuse: Refuse


def register(app: Flask, *, authenticators: Sequence[Authenticator], refuse: Refuse) -> None:
    """Bind the guards of routes. The first authenticator that recognises a request returns its principal."""
    app.extensions[_NAME] = _Guards(authenticators, refuse)


def principal() -> Principal:
    """Return the principal, only inside a view that `login_required` or `admin_required` guards."""
    return cast(Principal, g.principal)


def login_required(permission: Permission) -> Callable[[View], View]:
    """Require a principal with the permission; document the security scheme. Limits read the view's `permission`."""

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
    """Require an administrator; audit others and answer 403. Stands above `arguments`, so that it runs first."""

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            refuse_undeclared_query()
            return view(*args, **kwargs)

        guarded.refuses_undeclared_query = True  # type: ignore[attr-defined]
        return login_required(permission)(may_answer("forbidden", "audit_unavailable")(cast(View, guarded)))

    return decorate


def _admit(permission: Permission) -> Principal:
    guards = cast(_Guards, current_app.extensions[_NAME])
    found = next((who for authenticate in guards.authenticators if (who := authenticate()) is not None), None)
    if found is None:
        raise Unauthorized
    if permission not in found.permissions:
        assert request.url_rule is not None
        guards.refuse(found, method=request.method, route=request.url_rule.rule)
    return found
