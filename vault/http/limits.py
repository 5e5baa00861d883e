"""How often one network may ask, and how often about one address: Flask-Limiter on every route of accounts.

The second limit is for an address as asked about from one network. Were it for the address alone, ten requests a
minute from anywhere would keep its owner out; guessing from many networks is slowed down by vault.auth.credentials.
"""

import hashlib
import hmac
import math
import time
from typing import Any, Final

from flask import Blueprint, Flask, Response, current_app, g, request
from flask_jwt_extended import current_user, verify_jwt_in_request
from flask_limiter import Limiter, RequestLimit
from limits.errors import StorageError

from vault.auth.addresses import parse_address
from vault.config import Settings
from vault.derived import derive_key
from vault.errors import InputRefused, LimitsUnavailable, RateLimited
from vault.http.clients import client_ip
from vault.networks import network_of

_STORE_TIMEOUT_SECONDS: Final = 0.3
# What only somebody who is signed in may ask, and is answered by a look at his password.
_ASK_FOR_PASSWORD: Final = {"auth.change_password", "auth.change_email", "auth.delete_me"}


def register(app: Flask, settings: Settings, blueprints: tuple[Blueprint, ...]) -> None:
    """Limit every route of these blueprints. Each application has a limiter of its own: it remembers its routes."""
    app.config["RATELIMIT_STORAGE_URI"] = settings.ratelimit_storage_uri
    limiter = Limiter(
        key_func=_network,
        strategy="moving-window",
        storage_options=_storage_options(settings.ratelimit_storage_uri),
        on_breach=_refuse,
    )
    key = derive_key(settings.secret_key, "limits")

    def by_network() -> str:
        return _mac(key, "network", _network())

    def by_address() -> str:
        return _mac(key, "address", _network(), _address() or "")

    for blueprint in blueprints:
        limiter.limit(f"{settings.auth_limit_per_ip}/minute", key_func=by_network)(blueprint)
        limiter.limit(
            f"{settings.auth_limit_per_address}/minute",
            key_func=by_address,
            scope="address",
            exempt_when=lambda: _address() is None,
        )(blueprint)
    limiter.init_app(app)
    app.register_error_handler(StorageError, _fail_closed)


def _storage_options(uri: str) -> dict[str, Any]:
    if not uri.startswith("redis"):
        return {}
    return {
        "wrap_exceptions": True,
        "socket_connect_timeout": _STORE_TIMEOUT_SECONDS,
        "socket_timeout": _STORE_TIMEOUT_SECONDS,
    }


def _refuse(breached: RequestLimit) -> Response:
    wait = max(1, math.ceil(breached.window.reset_time - time.time()))
    raise RateLimited(limit=breached.limit.amount, retry_after_seconds=wait)


def _fail_closed(error: StorageError) -> Any:
    unavailable = LimitsUnavailable()
    unavailable.__cause__ = error
    return current_app.handle_user_exception(unavailable)


def _network() -> str:
    """IPv4 addresses one by one; IPv6 by the network that a household gets, whose addresses are beyond counting."""
    ip = client_ip()
    return network_of(ip) if ip is not None and ":" in ip else ip or "-"


def _address() -> str | None:
    """The address that a request is about: the one it names, or that of whoever shows a password."""
    if "limited_address" not in g:
        g.limited_address = _find_address()
    return g.limited_address  # type: ignore[no-any-return]


def _find_address() -> str | None:
    if request.endpoint in _ASK_FOR_PASSWORD:
        # Answers 401 by itself where there is a token that is no good.
        return parse_address(current_user.email).key if verify_jwt_in_request(optional=True) else None
    if request.mimetype != "application/json":
        return None
    try:
        body: Any = request.get_json(silent=True)
        return parse_address(body["email"]).key
    except (InputRefused, KeyError, TypeError, AttributeError, RecursionError):
        # Not about an address that could have an account; the route says what is wrong with it.
        return None


def _mac(key: bytes, *parts: str) -> str:
    return hmac.digest(key, "\0".join(parts).encode("utf-8", "surrogatepass"), hashlib.sha256).hex()
