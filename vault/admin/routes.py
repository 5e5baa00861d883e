"""Routes under /api/v1/admin: read the input, call the service, answer."""

from vault.http.api import VaultBlueprint

blueprint = VaultBlueprint("admin", __name__, url_prefix="/api/v1/admin", description="For administrators")
