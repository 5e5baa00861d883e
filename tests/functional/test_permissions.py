"""What each route asks of the principal, and who is asked first."""

import json
import uuid
from collections.abc import Callable
from typing import NoReturn

import pytest
from flask import request

from testing.vault import SQLITE, Person, Vault
from vault.core.errors import Forbidden
from vault.core.principal import Permission, Principal
from vault.http import access

pytestmark = [SQLITE, pytest.mark.uncounted]

PUBLIC = {
    *("api-docs.openapi_json", "docs.page", "docs.part", "health.livez", "health.readyz"),
    *("auth.register", "auth.verify_email", "auth.resend_verification", "auth.forgot_password", "auth.reset_password"),
    *("auth.login", "auth.refresh"),
    *("pages.ask_to_verify", "pages.verify", "pages.ask_for_password", "pages.reset_password"),
}
NEEDED = {
    Permission.ACCOUNT_READ: {"auth.me", "auth.activity"},
    Permission.ACCOUNT_MANAGE: {
        *("auth.logout", "auth.list_sessions", "auth.end_session", "auth.change_me", "auth.delete_me"),
        *("auth.change_password", "auth.change_email"),
    },
    Permission.FILES_READ: {
        *("files.list_files", "files.usage", "files.get_file", "files.content"),
        *("files.list_versions", "files.version_content"),
        *("folders.get_folder", "folders.list_entries", "folders.get_size", "entries.find_entry", "trash.list_trash"),
        "uploads.list_uploads",
    },
    Permission.FILES_WRITE: {
        *("files.upload", "files.rename_file", "files.replace_content", "files.restore_version", "files.copy_file"),
        *("folders.create_folder", "entries.change_entry", "entries.move_entries"),
        *("entries.restore_entry", "entries.restore_entries"),
        *("uploads.create", "uploads.look", "uploads.append", "uploads.end", "uploads.override"),
    },
    Permission.FILES_DELETE: {
        *("files.delete_file", "files.delete_version", "entries.delete_entry", "entries.delete_entries"),
        *("entries.trash_entry", "entries.trash_entries", "trash.empty_trash"),
    },
    Permission.AUDIT_READ: {"audit.list_events", "audit.export"},
    Permission.ADMIN_READ: {"admin.list_users", "admin.get_user", "admin.list_files", "admin.keys"},
    Permission.ADMIN_WRITE: {
        *("admin.change_user", "admin.delete_user", "admin.send_password_reset", "admin.delete_file"),
    },
}
FILE = "00000000-0000-4000-8000-000000000000"
ROUTES = [
    pytest.param("GET", "/api/v1/auth/me", None, id="account-read"),
    pytest.param("PATCH", "/api/v1/auth/me", {"full_name": "Anna"}, id="account-manage"),
    pytest.param("GET", "/api/v1/files", None, id="files-read"),
    pytest.param("PATCH", f"/api/v1/files/{FILE}", {"name": "a"}, id="files-write"),
    pytest.param("DELETE", f"/api/v1/files/{FILE}", None, id="files-delete"),
    pytest.param("GET", "/api/v1/admin/audit", None, id="audit-read"),
    pytest.param("GET", "/api/v1/admin/users", None, id="admin-read"),
    pytest.param("DELETE", f"/api/v1/admin/files/{FILE}", None, id="admin-write"),
]


def test_every_route_is_public_or_names_the_permission_that_it_needs(vault: Vault) -> None:
    views = vault.app.view_functions
    needed = {
        rule.endpoint: getattr(views[rule.endpoint], "permission", None) for rule in vault.app.url_map.iter_rules()
    }

    public = {endpoint for endpoint, permission in needed.items() if permission is None}

    assert public == PUBLIC
    assert {one: {name for name, asked in needed.items() if asked is one} for one in Permission} == NEEDED


def test_the_document_asks_for_a_token_where_a_route_names_a_permission(vault: Vault) -> None:
    views = vault.app.view_functions
    document = json.loads(vault.client.get("/openapi.json").text)

    secured = {
        operation["operationId"].removesuffix("_head").replace("_", ".", 1)
        for methods in document["paths"].values()
        for name, operation in methods.items()
        if name != "parameters" and operation["security"]
    }

    assert secured == {name for name, view in views.items() if hasattr(view, "permission")}


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_a_missing_permission_is_refused(vault: Vault, method: str, path: str, body: dict[str, str] | None) -> None:
    rule = vault.app.url_map.bind("").match(path, method, return_rule=True)[0]
    everything_else = frozenset(Permission) - {vault.app.view_functions[rule.endpoint].permission}
    refused = []

    def refuse(principal: Principal, *, method: str, route: str) -> NoReturn:
        refused.append((principal.permissions, method, route))
        raise Forbidden

    access.register(vault.app, authenticators=[lambda: Principal(permissions=everything_else)], refuse=refuse)
    answer = vault.client.open(path, method=method, json=body)

    assert (answer.status_code, answer.json["code"]) == (403, "forbidden")
    assert refused == [(everything_else, method, rule.rule)]


def test_the_first_authenticator_that_recognises_a_request_says_whose_it_is(vault: Vault, anna: Person) -> None:
    me = anna.me().json
    asked = []

    def authenticator(name: str, found: Principal | None) -> Callable[[], Principal | None]:
        def authenticate() -> Principal | None:
            asked.append((name, request.path))
            return found

        return authenticate

    first = authenticator("first", None)
    second = authenticator("second", Principal(uuid.UUID(me["id"]), permissions=frozenset({Permission.ACCOUNT_READ})))
    access.register(
        vault.app,
        authenticators=[first, second, authenticator("third", Principal())],
        refuse=vault.container.auth.admins.refuse,
    )
    answer = vault.client.get("/api/v1/auth/me")

    assert (answer.status_code, answer.json) == (200, me)
    assert asked == [("first", "/api/v1/auth/me"), ("second", "/api/v1/auth/me")]


def test_a_request_that_no_authenticator_recognises_is_not_signed_in(vault: Vault) -> None:
    access.register(vault.app, authenticators=[lambda: None, lambda: None], refuse=vault.container.auth.admins.refuse)

    answer = vault.client.get("/api/v1/auth/me")

    assert (answer.status_code, answer.json["code"]) == (401, "unauthorized")
