"""Liveness: this process answers. Readiness: it can serve."""

from flask import Blueprint, Response, jsonify

from vault.http.parts import find_part
from vault.observe.readiness import Readiness

blueprint = Blueprint("health", __name__)


@blueprint.get("/livez")
def livez() -> Response:
    """Answer without asking a dependency, so that a shared outage does not restart every process."""
    return Response("ok\n", mimetype="text/plain")


@blueprint.get("/readyz")
@blueprint.get("/healthz")
def readyz() -> tuple[Response, int]:
    """503 without the database; what else fails is named, and takes no node out of a balancer that all share it with.

    Names and one word each, since anybody may ask. Why a check fails is told where the metrics are.
    """
    report = find_part(Readiness).report()
    checks = {name: "ok" if finding.is_ok else "failed" for name, finding in report.findings.items()}
    return jsonify(status=report.status, checks=checks), 200 if report.can_serve else 503
