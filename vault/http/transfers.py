"""What a request tells the connection that it came by: whose it is, and that a file is to be transferred."""

from collections.abc import Hashable
from typing import Any, Final, Protocol, runtime_checkable

# What a client need not be waited for: such bodies are there before a thread is, such answers fit into the buffers.
SMALL_BYTES: Final = 64 * 1024


@runtime_checkable
class PacedConnection(Protocol):
    """A connection of `vault.server`, which limits how long threads wait for clients. Other servers have none."""

    def know(self, account: Hashable) -> None: ...

    def begin_transfer(self) -> None: ...

    def begin_small_file(self) -> None: ...


def know_account(environ: dict[str, Any], account: Hashable) -> None:
    """Tell the connection of a request whose it is, once that is proven."""
    connection = environ.get("gunicorn.socket")
    if isinstance(connection, PacedConnection):
        connection.know(account)


def begin_transfer(environ: dict[str, Any], size_bytes: int | None) -> None:
    """Take what a file of this size (None: unknown) needs before anything is done for it. Raises Busy."""
    connection = environ.get("gunicorn.socket")
    if not isinstance(connection, PacedConnection):
        return
    if size_bytes is None or size_bytes > SMALL_BYTES:
        connection.begin_transfer()
    else:
        connection.begin_small_file()
