"""HTML pages of mailed links: forms without script. Opening one changes nothing; sending its form does."""

import secrets

from flask import Blueprint, Response, render_template, request

from vault.auth.confirming import Confirmations
from vault.auth.recovery import Recovery
from vault.core.errors import InputRefused, InvalidToken, VaultError, WrongPassword
from vault.http.problems import status_and_headers
from vault.http.requests import anonymous, find_part

# More than any accepted password, and cheap to hash
_LONGEST = 1024

blueprint = Blueprint("pages", __name__, template_folder="templates")


@blueprint.get("/verify-email")
def ask_to_verify() -> Response:
    """Show the forms of a verification link. Mail scanners follow links, so it consumes nothing."""
    return _page("verify_email.html", token=_token(request.args.get("token")))


@blueprint.post("/verify-email")
def verify() -> Response:
    """Confirm the address of the form's token by its password or a new one; a refused password can be corrected."""
    token, confirmations = _token(request.form.get("token")), find_part(Confirmations)
    try:
        if "new_password" in request.form:
            confirmations.confirm_anew(anonymous(), token, _password("new_password"))
        else:
            confirmations.confirm(anonymous(), token, _password("password"))
    except WrongPassword as exc:
        return _page("verify_email.html", status=403, token=token, wrong=exc.detail)
    except InputRefused as exc:
        return _page("verify_email.html", status=422, token=token, refused=" ".join(exc.errors["new_password"]))
    return _page("outcome.html", title="Address confirmed", text="You can sign in with it now and close this page.")


@blueprint.get("/reset-password")
def ask_for_password() -> Response:
    """Show the form of a reset link. It consumes nothing."""
    return _page("reset_password.html", token=_token(request.args.get("token")))


@blueprint.post("/reset-password")
def reset_password() -> Response:
    """Set the form's password by its token; a refused password can be corrected in the same form."""
    token = _token(request.form.get("token"))
    try:
        find_part(Recovery).reset_password(anonymous(), token, _password("new_password"))
    except InputRefused as exc:
        problem = " ".join(exc.errors["new_password"])
        return _page("reset_password.html", status=422, token=token, problem=problem)
    return _page(
        "outcome.html",
        title="Password changed",
        text="You can sign in with the new password now. All sessions of the account were signed out.",
    )


for _view in (ask_to_verify, ask_for_password):
    _view.query_fields = frozenset({"token"})  # type: ignore[attr-defined]


@blueprint.errorhandler(VaultError)
def _tell(error: VaultError) -> Response:
    """Show an error as a page."""
    status, headers = status_and_headers(error)
    title = "This link does not work" if isinstance(error, InvalidToken) else "The request failed"
    response = _page("outcome.html", status=status, title=title, text=error.detail)
    response.headers.extend(headers)
    return response


def _token(text: str | None) -> str:
    return (text or "")[:256]


def _password(field: str) -> str:
    return request.form.get(field, "")[:_LONGEST]


def _page(template: str, *, status: int = 200, **values: str) -> Response:
    nonce = secrets.token_urlsafe(16)
    response = Response(render_template(template, nonce=nonce, **values), status, mimetype="text/html")
    response.headers["Cache-Control"] = "no-store"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Content-Security-Policy"] = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    )
    return response
