"""A real HTTP server on loopback that misbehaves on demand: cuts, stalls, lies about lengths and
ranges, redirects, compresses.
"""

import gzip
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Reply:
    """How one request is answered; offsets count from the start of the whole content."""

    content: bytes = b""
    status: int = 200
    etag: str | None = '"v1"'
    modified: str | None = None
    ranges: bool = True
    heed_if_range: bool = True
    cut: int | None = None  # close the connection there
    reset: bool = False  # ... with a TCP reset
    stall: int | None = None  # send nothing more from there
    rate: int | None = None  # bytes a second
    gate: threading.Event | None = None  # send a quarter, then wait for it
    extra_length: int = 0  # added to Content-Length
    announce: bool = True  # False: no Content-Length, the end of the connection is the end
    chunked: bool = False
    range_shift: int = 0  # added to where Content-Range says it begins
    total_shift: int = 0
    encoding: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """One request, and how many body bytes it was given."""

    path: str
    headers: dict[str, str]
    sent: list[int]


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up, or don't trust the certificate, are part of the tests."""


class Misbehaving:
    """`plan[path]` is a reply, or a list of them for the first, second...

    request (the last one repeats).
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.plan: dict[str, Reply | list[Reply]] = {}
        self.seen: list[Seen] = []
        self.gone = threading.Event()
        self._server = _Quiet(("127.0.0.1", 0), self._handler())
        if tls is not None:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self.gone.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def ranges(self) -> list[str | None]:
        """The Range header of each request so far."""
        return [request.headers.get("range") for request in self.seen]

    def _reply(self, path: str) -> Reply:
        plan = self.plan.get(path, Reply(status=404))
        if isinstance(plan, Reply):
            return plan
        number = sum(request.path == path for request in self.seen) - 1
        return plan[min(number, len(plan) - 1)]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                sent: list[int] = []
                outer.seen.append(
                    Seen(self.path, {k.lower(): v for k, v in self.headers.items()}, sent)
                )
                try:
                    answer(self, outer._reply(self.path), sent, outer.gone)
                except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
                    self.close_connection = True

        return Handler


def answer(
    handler: BaseHTTPRequestHandler, reply: Reply, sent: list[int], gone: threading.Event
) -> None:
    """Send a reply, faults and all."""
    status, start, body = reply.status, 0, reply.content
    asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    condition = handler.headers.get("If-Range")
    fits = condition is None or condition in (reply.etag, reply.modified) or not reply.heed_if_range
    headers = dict(reply.headers)
    if status == 200 and asked and reply.ranges and fits:
        start = int(asked[1])
        if start >= len(body):
            status, body = 416, b""
            headers["Content-Range"] = f"bytes */{len(reply.content)}"
        else:
            status = 206
            total = len(body) + reply.total_shift
            headers["Content-Range"] = (
                f"bytes {start + reply.range_shift}-{len(body) - 1 + reply.range_shift}/{total}"
            )
            body = body[start:]
    if reply.encoding == "gzip":
        body = gzip.compress(body, 1)
    if reply.encoding:
        headers["Content-Encoding"] = reply.encoding
    handler.send_response(status)
    for name, value in (("ETag", reply.etag), ("Last-Modified", reply.modified)):
        if value is not None:
            handler.send_header(name, value)
    for name, value in headers.items():
        handler.send_header(name, value)
    if reply.chunked:
        handler.send_header("Transfer-Encoding", "chunked")
    elif reply.announce:
        handler.send_header("Content-Length", str(len(body) + reply.extra_length))
    else:
        handler.close_connection = True
        handler.send_header("Connection", "close")
    handler.end_headers()
    _send_body(handler, reply, body, start, sent, gone)


def _send_body(
    handler: BaseHTTPRequestHandler,
    reply: Reply,
    body: bytes,
    start: int,
    sent: list[int],
    gone: threading.Event,
) -> None:
    end = min(
        (offset - start for offset in (reply.cut, reply.stall) if offset is not None),
        default=len(body),
    )
    body = body[: max(end, 0)]
    step = 1 << 16 if reply.rate is None else max(1, reply.rate // 50)
    for offset in range(0, len(body), step):
        piece = body[offset : offset + step]
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if reply.chunked else piece)
        sent.append(len(piece))
        if reply.gate is not None and sum(sent) >= len(body) // 4:
            reply.gate.wait(60)
        if reply.rate is not None and gone.wait(step / reply.rate):
            return
    if reply.stall is not None:
        gone.wait(20)
    if reply.cut is not None or reply.stall is not None:
        handler.wfile.flush()
        handler.close_connection = True
        if reply.reset:
            handler.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            time.sleep(0.02)  # let the client take what was sent before the reset discards it
            handler.connection.close()
        return
    if reply.chunked:
        handler.wfile.write(b"0\r\n\r\n")
    if reply.extra_length > 0:
        handler.close_connection = True


@contextmanager
def misbehaving(tls: ssl.SSLContext | None = None) -> Iterator[Misbehaving]:
    """A running server."""
    server = Misbehaving(tls)
    try:
        yield server
    finally:
        server.close()
