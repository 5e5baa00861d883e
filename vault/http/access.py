"""Who may use a route. How a request proves whose it is, and who is an administrator, is handed in."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, Protocol, cast

from flask import Flask, current_app, g, request

from vault.core.principal import Actor, SignedIn
from vault.http.api import refuse_undeclared_query
from vault.http.openapi import View, may_answer
from vault.http.requests import anonymous

_NAME: Final = "vault.access"


class RequireAdmin(Protocol):
    def __call__(self, who: SignedIn, actor: Actor, *, method: str, route: str) -> None:
        """Raise Forbidden, once it is audited, unless the person is an administrator."""


@dataclass(frozen=True, slots=True)
class _Guards:
    authenticate: Callable[[], SignedIn]
    require_admin: RequireAdmin


def register(app: Flask, *, authenticate: Callable[[], SignedIn], require_admin: RequireAdmin) -> None:
    """Bind the guards of routes. `authenticate` is asked for the request at hand, and raises what 401 answers."""
    app.extensions[_NAME] = _Guards(authenticate, require_admin)


def signed_in() -> SignedIn:
    """Return the account that this request has proven to be of; only inside a `login_required` view."""
    return cast(SignedIn, g.signed_in)


def actor() -> Actor:
    """Return the signed-in person as an actor of audit events."""
    who = signed_in()
    return anonymous().known_as(who.user_id, who.email, who.session_id)


def login_required(view: View) -> View:
    """Let a view run only for a request that proves whose it is; documents the security scheme.

    The view gets the attribute `needs_token`, by which limits know what needs an account.
    """

    @wraps(view)
    def authenticated(*args: Any, **kwargs: Any) -> Any:
        g.signed_in = _guards().authenticate()
        return view(*args, **kwargs)

    guarded: Any = may_answer("unauthorized")(cast(View, authenticated))
    guarded.needs_token = True
    guarded._apidoc["manual_doc"] = {**guarded._apidoc.get("manual_doc", {}), "security": [{"bearer": []}]}
    return cast(View, guarded)


def admin_required(view: View) -> View:
    """Let a view run for administrators only; everybody else is refused with 403, and that is audited.

    Stands above `arguments`, so that nothing else is looked at before.
    """

    @wraps(view)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        assert request.url_rule is not None
        _guards().require_admin(signed_in(), actor(), method=request.method, route=request.url_rule.rule)
        refuse_undeclared_query()
        return view(*args, **kwargs)

    guarded.refuses_undeclared_query = True  # type: ignore[attr-defined]
    return login_required(may_answer("forbidden", "audit_unavailable")(cast(View, guarded)))


def _guards() -> _Guards:
    return cast(_Guards, current_app.extensions[_NAME])
