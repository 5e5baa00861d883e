"""Liveness: this process answers. Readiness: it can serve."""

from flask import Blueprint, Response, jsonify

from vault.http.requests import find_part
from vault.observe.readiness import Readiness

blueprint = Blueprint("health", __name__)


@blueprint.get("/livez")
def livez() -> Response:
    """Answer without asking a dependency, so that a shared outage does not restart every process."""
    return Response("ok\n", mimetype="text/plain")


@blueprint.get("/readyz")
@blueprint.get("/healthz")
def readyz() -> tuple[Response, int]:
    """Answer 503 without the database only: other failures are shared by all nodes of a balancer. Any client may ask,
    so each check has a name and one word; the metrics' address has reasons."""
    report = find_part(Readiness).report()
    checks = {name: "ok" if finding.is_ok else "failed" for name, finding in report.findings.items()}
    return jsonify(status=report.status, checks=checks), 200 if report.can_serve else 503
