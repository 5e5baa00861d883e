"""flask-smorest with problem bodies, strict input and documented errors."""

import threading
from collections.abc import Callable
from typing import Any, Final, cast

from apispec import APISpec
from flask import Flask
from flask_smorest import Api, Blueprint
from werkzeug.exceptions import HTTPException

from vault.http.examples import EXAMPLES
from vault.http.fields import StrictParser
from vault.http.openapi import ProblemSchema, View, may_answer, parameters, responses
from vault.http.problems import on_http_error
from vault.settings.config import Settings

BINARY: Final = {"type": "string", "format": "binary"}


class VaultApi(Api):  # type: ignore[misc]
    """Registers routes immediately and builds the OpenAPI document on first use."""

    ERROR_SCHEMA = ProblemSchema

    def __init__(self, app: Flask) -> None:
        self._describing = threading.RLock()
        self._undescribed: list[Blueprint] = []
        super().__init__(app)

    @property
    def spec(self) -> APISpec:
        """Return the OpenAPI document of every blueprint."""
        with self._describing:
            while self._undescribed:
                blueprint = self._undescribed.pop(0)
                blueprint.register_views_in_doc(self, self._app, self._spec, name=blueprint.name, parameters=None)
                self._spec.tag({"name": blueprint.name, "description": blueprint.description})
            for name, schema in self._spec.components.schemas.items():
                if name in EXAMPLES:
                    schema["examples"] = [EXAMPLES[name]]
            return self._spec

    @spec.setter
    def spec(self, spec: APISpec) -> None:
        self._spec = spec

    def register_blueprint(self, blueprint: Blueprint) -> None:
        self._app.extensions["flask-smorest"]["blp_name_to_api"][blueprint.name] = self
        self._app.register_blueprint(blueprint)
        self._undescribed.append(blueprint)

    def _register_responses(self) -> None:
        # By default each status of HTTP has one, as application/json; operations have their own here.
        problem = {"description": "A problem", "content": {"application/problem+json": {"schema": ProblemSchema}}}
        self.spec.components.response("DEFAULT_ERROR", problem, lazy=True)

    def _register_pagination_header(self) -> None:
        """Do nothing: lists have their cursor in the body."""

    def handle_http_exception(self, error: HTTPException) -> Any:
        return on_http_error(error)


class VaultBlueprint(Blueprint):  # type: ignore[misc]
    """Blueprint that refuses undeclared query parameters and documents failures. `problems` are codes of each of its
    routes, beyond those of a route itself (`may_answer`)."""

    ARGUMENTS_PARSER = StrictParser()

    def __init__(self, *args: Any, problems: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._problems = ("validation_failed", "database_unavailable", *problems)
        self._prepare_doc_cbks.append(self._prepare_own_doc)

    def arguments(self, schema: Any, *, location: str = "json", **kwargs: Any) -> Callable[..., Any]:
        decorate = super().arguments(schema, location=location, **kwargs)

        def wrap(view: Callable[..., Any]) -> Callable[..., Any]:
            decorated: Any = decorate(view)
            if location == "json":
                decorated = may_answer("malformed_json", "too_large", "unsupported_media_type")(decorated)
            if location == "query":
                declared = schema().fields if isinstance(schema, type) else schema.fields
                decorated.query_fields = frozenset(declared)
            return decorated  # type: ignore[no-any-return]

        return wrap

    def _store_endpoint_docs(self, endpoint: str, obj: View, parameters: Any, tags: Any, **options: Any) -> None:
        super()._store_endpoint_docs(endpoint, obj, parameters, tags, **options)
        for method, doc_info in self._docs[endpoint].items():
            if method != "parameters":
                # Generated clients name their functions by it.
                doc_info["operation_id"] = f"{self.name}_{obj.__name__}" + ("_head" if method == "head" else "")
                # The first line of a docstring is a sentence, and a summary is a title.
                doc_info["docstring"]["summary"] = doc_info["docstring"]["summary"].removesuffix(".")

    def _prepare_own_doc(self, doc: dict[str, Any], doc_info: dict[str, Any], **_: Any) -> dict[str, Any]:
        problems = responses((*self._problems, *doc_info.get("problems", ())))
        answers = {**doc.get("responses", {}), **problems}
        headers = parameters(doc_info.get("headers", ()))
        return {
            **doc,
            "operationId": doc_info["operation_id"],
            # Empty: public. `login_required` replaces it later.
            "security": [],
            "parameters": [*doc.get("parameters", []), *headers],
            "responses": dict(sorted(answers.items(), key=lambda answer: str(answer[0]))),
        }


def sends_bytes(
    blueprint: VaultBlueprint, status: int, description: str, headers: dict[str, Any]
) -> Callable[[View], View]:
    """Document an answer of bytes; the view returns a Response. The document says `application/octet-stream`, the only
    type that generated clients read as bytes."""

    def decorate(view: View) -> View:
        decorated: Any = view
        for content_type in ("application/octet-stream", "*/*"):
            decorated = blueprint.alt_response(
                status, schema=BINARY, content_type=content_type, description=description, headers=headers
            )(decorated)
        return cast(View, decorated)

    return decorate


def register(app: Flask, settings: Settings) -> VaultApi:
    """Bind the API and its documentation to an application."""
    app.config.update(
        API_TITLE="Secure Vault",
        API_VERSION="v1",
        OPENAPI_VERSION="3.1.0",
        OPENAPI_URL_PREFIX="/",
        OPENAPI_JSON_PATH="openapi.json",
        API_SPEC_OPTIONS={
            "info": {"description": "An encrypted file store. Errors are RFC 9457 problems with a stable `code`."},
            "servers": [{"url": settings.site.public_url}],
            "components": {"securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}},
        },
    )
    return VaultApi(app)
