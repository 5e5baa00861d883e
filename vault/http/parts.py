"""The application's parts for routes, by class."""

from collections.abc import Iterable
from typing import Any, Final, TypeVar, cast

from flask import Flask, current_app

_NAME: Final = "vault.parts"
T = TypeVar("T")


def register(app: Flask, parts: Iterable[Any]) -> None:
    """Store the one part of each class."""
    app.extensions[_NAME] = {type(part): part for part in parts}


def find_part(kind: type[T]) -> T:
    """Return this application's part of a class."""
    return cast(T, current_app.extensions[_NAME][kind])
