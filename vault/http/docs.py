"""Swagger UI at /docs: the files of flask-swagger-ui in this service's page, which has no inline script."""

from pathlib import Path
from typing import Final

import flask_swagger_ui
from flask import Blueprint, Response, abort, send_from_directory

_OWN: Final = Path(__file__).parent / "swagger"
_DIST: Final = Path(flask_swagger_ui.__file__).parent / "dist"
_FOLDERS: Final = {
    "start.js": _OWN,
    "favicon-32x32.png": _DIST,
    "index.css": _DIST,
    "swagger-ui-bundle.js": _DIST,
    "swagger-ui.css": _DIST,
}
# data: for pictures in Swagger UI's style sheet, blob: for downloaded pictures.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

blueprint = Blueprint("docs", __name__)


@blueprint.get("/docs")
def page() -> Response:
    """Return the page that shows the API and can call it."""
    response = send_from_directory(_OWN, "index.html")
    response.headers["Content-Security-Policy"] = _POLICY
    return response


@blueprint.get("/docs/<name>")
def part(name: str) -> Response:
    """Return a file that the page loads."""
    if name not in _FOLDERS:
        abort(404)
    return send_from_directory(_FOLDERS[name], name)
