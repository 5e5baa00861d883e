"""Messages of a request to its connection: its account, and that a file is transferred."""

from collections.abc import Hashable
from typing import Any, Final, Protocol, runtime_checkable

# Such bodies arrive before a thread is used, and such answers fit into the buffers.
SMALL_BYTES: Final = 64 * 1024


@runtime_checkable
class PacedConnection(Protocol):
    """A connection of `vault.server`, which limits how long threads wait for clients. Other servers have none."""

    def know(self, account: Hashable) -> None: ...

    def begin_transfer(self) -> None: ...

    def begin_small_file(self) -> None: ...


def know_account(environ: dict[str, Any], account: Hashable) -> None:
    """Tell the connection the request's proven account."""
    connection = environ.get("gunicorn.socket")
    if isinstance(connection, PacedConnection):
        connection.know(account)


def begin_transfer(environ: dict[str, Any], size_bytes: int | None) -> None:
    """Take a slot for a file of this size (None: unknown) before other work. Raises Busy."""
    connection = environ.get("gunicorn.socket")
    if not isinstance(connection, PacedConnection):
        return
    if size_bytes is None or size_bytes > SMALL_BYTES:
        connection.begin_transfer()
    else:
        connection.begin_small_file()
