"""kombu's Redis transport, which reconnects to a Redis that refuses to serve. Imported only if Redis is the broker."""

from typing import Any

from kombu.transport import redis, virtual
from redis.exceptions import ResponseError


class _QoS(virtual.QoS):
    def restore_unacked(self) -> list[Any]:
        """Give back unfinished messages and drop what Redis does not take. kombu would write them to files."""
        super().restore_unacked()  # type: ignore[no-untyped-call]
        return []


class Channel(redis.Channel):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        # Replaces the class that kombu chooses by "ack_emulation".
        self.QoS = _QoS  # type: ignore[assignment]


class Transport(redis.Transport):
    Channel = Channel
    # A replica, or a server that is loading, full or wants another password, answers without serving. A reconnection
    # may reach another server at its address.
    connection_errors = (*redis.Transport.connection_errors, ResponseError)
