"""Liveness: this process answers."""

from flask import Blueprint, Response

blueprint = Blueprint("health", __name__)


@blueprint.get("/livez")
def livez() -> Response:
    """Asks no dependency, so that a shared one that is down does not restart every process."""
    return Response("ok\n", mimetype="text/plain")
