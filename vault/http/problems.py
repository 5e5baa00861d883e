"""HTTP statuses of error codes, and RFC 9457 bodies."""

from http import HTTPStatus
from typing import Any, Final, cast

import structlog
from flask import Flask, Response, g, json, request
from gunicorn.http.errors import ParseException
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import HTTPException

from vault.core.errors import (
    BadToken,
    DatabaseUnavailable,
    InputRefused,
    MalformedBody,
    OffsetMismatch,
    RangeNotSatisfiable,
    RateLimited,
    Unauthorized,
    UnsupportedCoding,
    UnsupportedVersion,
    VaultError,
)
from vault.core.reasons import reason_of
from vault.observe.metrics import PROBLEMS

log = structlog.get_logger(__name__)

TUS_VERSION: Final = "1.0.0"
STATUS: Final = {
    "malformed_json": 400,
    "malformed_body": 400,
    "bad_upload_header": 400,
    "upload_truncated": 400,
    "invalid_token": 400,
    "invalid_cursor": 400,
    "unauthorized": 401,
    "token_reused": 401,
    "invalid_credentials": 401,
    "forbidden": 403,
    "wrong_password": 403,
    "not_found": 404,
    "key_not_known": 404,
    "too_slow": 408,
    "cycle": 409,
    "folder_not_empty": 409,
    "in_trash": 409,
    "key_in_use": 409,
    "key_not_everywhere": 409,
    "last_admin": 409,
    "name_conflict": 409,
    "user_disabled": 409,
    "upload_lost": 409,
    "offset_mismatch": 409,
    "upload_gone": 410,
    "precondition_failed": 412,
    "unsupported_version": 412,
    "too_large": 413,
    "quota_exceeded": 413,
    "too_many_files": 413,
    "unsupported_media_type": 415,
    "range_not_satisfiable": 416,
    "validation_failed": 422,
    "digest_mismatch": 422,
    "not_a_folder": 422,
    "too_deep": 422,
    "upload_refused": 422,
    "upload_locked": 423,
    "rate_limited": 429,
    "too_many_uploads": 429,
    # tus 1.0, "Checksum"
    "checksum_mismatch": 460,
    "integrity_failed": 500,
    "key_unwrap_failed": 500,
    "not_implemented": 501,
    "storage_unavailable": 502,
    "audit_unavailable": 503,
    "busy": 503,
    "database_unavailable": 503,
    "installation_mismatch": 503,
    "key_service_unavailable": 503,
    "key_unavailable": 503,
    "upload_interrupted": 503,
    "limits_unavailable": 503,
    "storage_full": 507,
}
# Retry-After in seconds, by problem code.
_RETRY_AFTER: Final = {
    "audit_unavailable": 5,
    "busy": 2,
    "database_unavailable": 5,
    "key_service_unavailable": 5,
    "limits_unavailable": 5,
    "storage_unavailable": 5,
    "too_many_uploads": 5,
    "upload_interrupted": 1,
    "upload_locked": 1,
}
_CODES: Final = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    # Python's phrases for these two differ between versions.
    414: "uri_too_long",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
    422: "validation_failed",
}
_DETAILS: Final = {
    401: Unauthorized.detail,
    404: "This resource does not exist.",
    405: "This resource does not support the method.",
    413: "The request body is larger than this server accepts.",
}
# RFC 6750, 3: the challenge alone for a request without a token; the error tells a client that its token ended.
_CHALLENGE: Final = 'Bearer realm="secure-vault"'
# tus's phrase for 460, which is not in HTTP's registry
_CHECKSUM_MISMATCH: Final = "Checksum Mismatch"
# Failures of this service that are logged beyond the access log
_LOGGED_FROM: Final = 500
# A client's connection that broke off
_NOT_LOGGED: Final = "upload_interrupted"


def problem(
    status: int, code: str, detail: str, *, errors: dict[str, Any] | None = None, headers: dict[str, str] | None = None
) -> Response:
    """Return an `application/problem+json` answer."""
    body = problem_body(status, code, detail, g.get("request_id"))
    if errors is not None:
        body["errors"] = errors
    response = Response(json.dumps(body), status, mimetype="application/problem+json")
    response.headers.extend(headers or {})
    return response


def problem_body(status: int, code: str, detail: str, request_id: str | None) -> dict[str, Any]:
    """Return RFC 9457's members with `code` and `request_id`, and count the problem."""
    PROBLEMS.labels(code).inc()
    return {
        "type": f"urn:secure-vault:problem:{code}",
        "title": _CHECKSUM_MISMATCH if status == 460 else HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }


def register(app: Flask) -> None:
    """Answer every error of this application as a problem."""
    for code in STATUS:
        PROBLEMS.labels(code)
    app.register_error_handler(VaultError, on_vault_error)
    app.register_error_handler(SQLAlchemyError, _on_database_error)
    app.register_error_handler(ParseException, _on_broken_chunk)
    app.register_error_handler(HTTPException, on_http_error)
    app.register_error_handler(Exception, _on_unknown_error)


def on_vault_error(error: VaultError) -> Response:
    """Answer an error with its status, headers and detail."""
    status, headers = status_and_headers(error)
    errors = None
    if isinstance(error, InputRefused):
        errors = {k: list(v) for k, v in error.errors.items()}
    elif error.entry_id is not None:
        errors = {str(error.entry_id): [error.detail]}
    return problem(status, error.code, error.detail, errors=errors, headers=headers)


def status_and_headers(error: VaultError) -> tuple[int, dict[str, str]]:
    """Return an error's status and headers; log a failure of this service."""
    status = STATUS.get(error.code, 500)
    if status >= _LOGGED_FROM and error.code != _NOT_LOGGED:
        log.error("request_failed", code=error.code, reason=reason_of(error), exc_info=error)
    headers = {}
    if error.code in _RETRY_AFTER:
        headers["Retry-After"] = str(_RETRY_AFTER[error.code])
    if isinstance(error, RateLimited):
        headers["Retry-After"] = headers["RateLimit-Reset"] = str(error.retry_after_seconds)
        headers["RateLimit-Limit"], headers["RateLimit-Remaining"] = str(error.limit), "0"
    if isinstance(error, OffsetMismatch):
        headers["Upload-Offset"] = str(error.offset)
    if isinstance(error, UnsupportedVersion):
        headers["Tus-Version"] = TUS_VERSION
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size}"
    if isinstance(error, UnsupportedCoding):
        # RFC 9110, 12.5.3
        headers["Accept-Encoding"] = "identity"
    if status == 401:
        headers["WWW-Authenticate"] = _CHALLENGE + (', error="invalid_token"' if isinstance(error, BadToken) else "")
    return status, headers


def _on_broken_chunk(_error: ParseException) -> Response:
    """Answer gunicorn's error for a bad chunk, which appears only during reading."""
    return on_vault_error(MalformedBody())


def _on_database_error(error: SQLAlchemyError) -> Response:
    gone = isinstance(error, OperationalError | InterfaceError | PoolTimeout)
    if gone or (isinstance(error, DBAPIError) and error.connection_invalidated):
        unavailable = DatabaseUnavailable()
        unavailable.__cause__ = error
        return on_vault_error(unavailable)
    return _on_unknown_error(error)


def on_http_error(error: HTTPException) -> Response:
    """Answer Werkzeug's errors with the headers of their status, such as Allow."""
    if error.response is not None or error.code is None or error.code < 400:
        return cast(Response, Response.force_type(error.get_response(request.environ), request.environ))
    headers = {k: v for k, v in error.get_headers(request.environ) if k.lower() != "content-type"}
    code = _CODES.get(error.code, HTTPStatus(error.code).phrase.lower().replace(" ", "_"))
    # Werkzeug's descriptions address browsers and may quote the request.
    detail = _DETAILS.get(error.code, HTTPStatus(error.code).description or HTTPStatus(error.code).phrase)
    return problem(error.code, code, detail, headers=headers)


def _on_unknown_error(error: Exception) -> Response:
    log.error("unexpected_error", exc_info=error)
    return problem(500, "internal_error", "The server could not answer this request.")
