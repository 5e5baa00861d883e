"""Rate limits of account routes, per network and per address.

The first counts failures and requests that need no account. Successful requests of sessions, logins and refreshes do
not count, so that an office behind one address can work. The second counts an address as asked about by one network:
counted for the address alone, it would let strangers lock its owner out (see vault.auth.guessing).
"""

import hashlib
import hmac
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from flask import Blueprint, Flask, Response, current_app, g, request
from flask_jwt_extended import current_user, verify_jwt_in_request
from flask_jwt_extended.exceptions import JWTExtendedException
from flask_limiter import Limiter
from jwt import PyJWTError
from limits import RateLimitItem, RateLimitItemPerMinute
from limits.errors import StorageError

from vault.core.addresses import network_of, parse_address
from vault.core.derived import derive_key
from vault.core.errors import InputRefused, LimitsUnavailable, RateLimited
from vault.http.requests import client_ip
from vault.settings.config import Settings

_STORE_TIMEOUT_SECONDS: Final = 0.3
# Routes of signed-in accounts that check the password
_ASK_FOR_PASSWORD: Final = {"auth.change_password", "auth.change_email", "auth.delete_me"}
# Routes without access token that check a password or a token in the body
_SIGN_IN: Final = {"auth.login", "auth.refresh"}


def register(app: Flask, settings: Settings, blueprints: tuple[Blueprint, ...]) -> dict[str, Callable[[], None]]:
    """Return what admits requests, by the blueprints' names. Each application has its own limiter."""
    app.config["RATELIMIT_STORAGE_URI"] = settings.limits.storage_uri
    limiter = Limiter(
        key_func=_network, strategy="moving-window", storage_options=_storage_options(settings.limits.storage_uri)
    )
    limiter.init_app(app)
    limits = _Limits(limiter, settings, derive_key(settings.site.secret_key, "limits"))
    for blueprint in blueprints:
        app.after_request_funcs[blueprint.name].append(limits.count_failure)
        app.teardown_request_funcs[blueprint.name].append(limits.release)
    app.register_error_handler(StorageError, _fail_closed)
    return {blueprint.name: limits.admit for blueprint in blueprints}


class _Limits:
    """Requests a minute per route: of a network, failures and requests that need no account; about an address, all.

    Failures are counted when known. Until then a request with a password or a refresh token holds a place, so that
    concurrent ones do not pass together. Places are per process: several processes can exceed the limit briefly.
    """

    def __init__(self, limiter: Limiter, settings: Settings, key: bytes) -> None:
        self._limiter = limiter
        self._per_network = RateLimitItemPerMinute(settings.limits.per_ip)
        self._per_address = RateLimitItemPerMinute(settings.limits.per_address)
        self._key = key
        self._lock = threading.Lock()
        self._held: Counter[tuple[str, str]] = Counter()

    def admit(self) -> None:
        """Raise RateLimited if the network, or the network about this address, has used up its requests."""
        network, endpoint = _network(), str(request.endpoint)
        # A CORS preflight asks nothing of an account.
        if request.method != "OPTIONS":
            self._admit_network((_mac(self._key, "network", network), endpoint))
        address = _address()
        if address is not None:
            place = (_mac(self._key, "address", network, address), f"{endpoint}:address")
            if not self._limiter.limiter.hit(self._per_address, *place):
                raise self._refusal(self._per_address, place)

    def _admit_network(self, place: tuple[str, str]) -> None:
        if request.endpoint in _SIGN_IN or (_needs_token() and _has_good_token()):
            self._hold(place, is_guess=request.endpoint in _SIGN_IN | _ASK_FOR_PASSWORD)
        elif not self._limiter.limiter.hit(self._per_network, *place):
            raise self._refusal(self._per_network, place)

    def count_failure(self, response: Response) -> Response:
        """Count an uncounted request if the client was at fault."""
        place = g.get("limited_place")
        if place is None or not 400 <= response.status_code < 500:
            return response
        try:
            self._limiter.limiter.hit(self._per_network, *place)
        except StorageError as exc:
            return current_app.make_response(_fail_closed(exc))
        return response

    def release(self, _error: BaseException | None = None) -> None:
        place = g.pop("held_place", None)
        if place is not None:
            with self._lock:
                self._held[place] -= 1
                if not self._held[place]:
                    del self._held[place]

    def _hold(self, place: tuple[str, str], *, is_guess: bool) -> None:
        with self._lock:
            taken = self._held[place]
            if is_guess:
                self._held[place] += 1
                g.held_place = place
        # Outside the lock, since Redis may be slow.
        if not self._limiter.limiter.test(self._per_network, *place, cost=1 + taken):
            raise self._refusal(self._per_network, place)
        g.limited_place = place

    def _refusal(self, limit: RateLimitItem, place: tuple[str, str]) -> RateLimited:
        window = self._limiter.limiter.get_window_stats(limit, *place)
        # With requests left, concurrent ones held the places.
        wait = window.reset_time - time.time() if window.remaining <= 0 else 0
        return RateLimited(limit=limit.amount, retry_after_seconds=max(1, math.ceil(wait)))


def _storage_options(uri: str) -> Any:
    if not uri.startswith("redis"):
        return {}
    # Imported on use: a tenth of a process's start-up time, for Redis only.
    from redis.backoff import NoBackoff
    from redis.exceptions import ResponseError
    from redis.retry import Retry

    return {
        "wrap_exceptions": True,
        "socket_connect_timeout": _STORE_TIMEOUT_SECONDS,
        "socket_timeout": _STORE_TIMEOUT_SECONDS,
        # One retry over a new connection: a server that became a replica may have a successor at its address.
        "retry": Retry(NoBackoff(), 1),
        "retry_on_error": [ResponseError],
    }


def _fail_closed(error: StorageError) -> Any:
    unavailable = LimitsUnavailable()
    unavailable.__cause__ = error
    return current_app.handle_user_exception(unavailable)


def _needs_token() -> bool:
    """Return whether the route needs an account: elsewhere a token must not lift a limit."""
    assert request.endpoint is not None
    return hasattr(current_app.view_functions[request.endpoint], "permission")


def _has_good_token() -> bool:
    try:
        return verify_jwt_in_request(optional=True) is not None
    except (JWTExtendedException, PyJWTError):
        # The view refuses it.
        return False


def _network() -> str:
    """Return an IPv4 address, or the IPv6 network of a household."""
    ip = client_ip()
    return network_of(ip) if ip is not None and ":" in ip else ip or "-"


def _address() -> str | None:
    """Return the address that a request names, or that of the account whose password it shows."""
    if request.endpoint in _ASK_FOR_PASSWORD:
        # Answers 401 for an invalid token.
        return parse_address(current_user.email).key if verify_jwt_in_request(optional=True) else None
    if request.mimetype != "application/json":
        return None
    try:
        body: Any = request.get_json(silent=True)
        return parse_address(body["email"]).key
    except (InputRefused, KeyError, TypeError, AttributeError, RecursionError):
        # Not an account's address; the route reports it.
        return None


def _mac(key: bytes, *parts: str) -> str:
    return hmac.digest(key, "\0".join(parts).encode("utf-8", "surrogatepass"), hashlib.sha256).hex()
