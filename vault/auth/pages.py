"""HTML pages behind mailed links: plain forms without script. Opening one changes nothing; sending its form does."""

import secrets

from flask import Blueprint, Response, render_template, request

from vault.errors import InvalidToken
from vault.http.auth import container
from vault.http.requests import anonymous

blueprint = Blueprint("pages", __name__, template_folder="templates")


@blueprint.get("/verify-email")
def ask_to_verify() -> Response:
    """The form that a verification link opens. Mail scanners follow links, so it consumes nothing."""
    return _page("verify_email.html", token=request.args.get("token", "")[:256])


@blueprint.post("/verify-email")
def verify() -> Response:
    """Confirm the address of the token in the form."""
    try:
        container().auth.verify_email(request.form.get("token", "")[:256], anonymous())
    except InvalidToken as exc:
        return _page("outcome.html", status=400, title="This link does not work", text=exc.detail)
    return _page(
        "outcome.html",
        title="Address confirmed",
        text="You can sign in now, and close this page.",
    )


ask_to_verify.query_fields = frozenset({"token"})  # type: ignore[attr-defined]


def _page(template: str, *, status: int = 200, **values: str) -> Response:
    nonce = secrets.token_urlsafe(16)
    response = Response(render_template(template, nonce=nonce, **values), status, mimetype="text/html")
    response.headers["Cache-Control"] = "no-store"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Content-Security-Policy"] = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    )
    return response
