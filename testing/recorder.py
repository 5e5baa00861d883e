"""An HTTP server on loopback that records requests and answers as a test says."""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A request; names of headers are in lower case."""

    method: str
    path: str
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)


class Recorder:
    """`answer(asked)` returns status, body and, if wanted, headers; by default 200 and an empty body. `behave` gets the
    connection before; `receive` reads a body; `closing` is set at the end, for what they wait for."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answer: Callable[[Asked], tuple[int, bytes] | tuple[int, bytes, dict[str, str]]] = lambda _: (200, b"")
        self.behave: Callable[[Recorder, BaseHTTPRequestHandler], object] = lambda *_: None
        self.receive: Callable[[BaseHTTPRequestHandler, int], bytes] = lambda handler, n: handler.rfile.read(n)
        self.closing = threading.Event()
        self.url = ""

    def headers(self, name: str) -> list[str | None]:
        """Return one header of every request, in turn."""
        return [asked.headers.get(name) for asked in self.asked]


class _Server(ThreadingHTTPServer):
    def shutdown_request(self, request: Any) -> None:
        # A connection that the client has cut cannot be shut down in order, and would be left open.
        self.close_request(request)

    def handle_error(self, *_: Any) -> None:
        """Some tests make the client give up."""


@contextmanager
def recorder(tls: ssl.SSLContext | None = None) -> Iterator[Recorder]:
    """Yield a running server, which ends with the block."""
    found = Recorder()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            body = found.receive(self, int(self.headers.get("Content-Length") or 0))
            asked = Asked(self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            found.asked.append(asked)
            found.behave(found, self)
            status, answer, *headers = found.answer(asked)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(answer)), **(headers[0] if headers else {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer)

        def __getattr__(self, name: str) -> Any:
            if name.startswith("do_"):
                return self.respond
            raise AttributeError(name)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing: tests assert on requests."""

    server = _Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    found.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield found
    finally:
        found.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
