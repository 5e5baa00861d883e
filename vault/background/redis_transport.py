"""kombu's Redis transport, for which a Redis that refuses to serve is lost, and which writes no files of messages.

Imported only where Redis is the broker.
"""

from typing import Any

from kombu.transport import redis, virtual
from redis.exceptions import ResponseError


class _QoS(virtual.QoS):
    def restore_unacked(self) -> list[Any]:
        """Give back what is unfinished; what Redis does not take, since it is away, is dropped, as rows say it all.

        kombu would write that into a new temporary file each time, where nobody ever looks for it.
        """
        super().restore_unacked()  # type: ignore[no-untyped-call]
        return []


class Channel(redis.Channel):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        # In place of the one without acknowledgements, which it chooses by "ack_emulation".
        self.QoS = _QoS  # type: ignore[assignment]


class Transport(redis.Transport):
    Channel = Channel
    # A replica, a server that loads its data, has no memory or no replicas left, or wants another password answers, and
    # cannot serve. Another server may serve at its address by now: drop the connection, and connect again.
    connection_errors = (*redis.Transport.connection_errors, ResponseError)
