"""A real S3 server that is away, slow, broken or forgetful, by a proxy before it or a signal to it."""

import contextlib
import http.client
import os
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Request:
    """A request that came by.

    Args:
        method: Of HTTP.
        path: Decoded, with the query.
        asked: Bytes of the object that were asked for, or sent.
    """

    method: str
    path: str
    asked: int = 0


Fault = Callable[[Request], str | None]


class Proxy:
    """Passes requests to the server behind it, except as `fault` says of each.

    A fault is `reset` (before the request is passed on), `hang` (until the fault is lifted, then on with it), a status
    (in XML; `html-502` as a load balancer says it), `lose` (carried out, the answer lost), `cut` (half the body), or
    `slow` (carried out at once, answered after 2 s).
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.fault: Fault = lambda _: None
        self.requests: list[Request] = []
        self._lift = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self._open: set[socket.socket] = set()
        self.port = 0
        self.start()

    def start(self) -> None:
        """Listen, on the same port as before."""
        handler = type("OfThis", (Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections, and reset those there are."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._open):
            _reset(connection)

    @contextlib.contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        """A fault for a while."""
        self._lift.clear()
        self.fault = fault
        try:
            yield
        finally:
            self.fault = lambda _: None
            self._lift.set()

    @contextlib.contextmanager
    def away(self, kind: str) -> Iterator[None]:
        """An outage of a kind."""
        if kind != "refused":
            with self.failing(lambda _: kind):
                yield
            return
        self.stop()
        try:
            yield
        finally:
            self.start()


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def setup(self) -> None:
        super().setup()
        self.proxy._open.add(self.connection)

    def finish(self) -> None:
        self.proxy._open.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def handle_expect_100(self) -> bool:
        return True  # whoever waits for it sends the body after a second anyway; a fault comes first

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            super().handle_one_request()
            return
        self.close_connection = True

    def _serve(self) -> None:
        if self.headers.get("Expect"):
            self.send_response_only(100)
            self.end_headers()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, unquote(self.path), len(body))
        self.proxy.requests.append(request)
        fault = self.proxy.fault(request)
        if fault == "reset":
            self._break()
        elif fault and (refusal := re.fullmatch(r"(html-)?(\d+)", fault)):
            self._answer(int(refusal[2]), _page(refusal[1], int(refusal[2])), {"Content-Type": "text/plain"})
        else:
            self._pass_on(request, body, fault)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve  # noqa: N815 - http.server's names

    def _pass_on(self, request: Request, body: bytes, fault: str | None) -> None:
        if fault == "hang":
            self.proxy._lift.wait()
        status, answer, headers = self.ask_upstream(body)
        if self.command == "GET":
            request.asked = len(answer)
        if fault == "slow":
            time.sleep(2)
        if fault == "lose":
            self._break()
        else:
            self._answer(status, answer, headers, cut=fault == "cut")

    def ask_upstream(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection(urlsplit(self.proxy.upstream).netloc, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name not in ("Expect", "Connection")}
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        hop = ("connection", "transfer-encoding", "content-length", "date", "server")
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in hop}
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        return answer.status, data, kept | {"Content-Length": length or str(len(data))}

    def _answer(self, status: int, body: bytes, headers: dict[str, str], cut: bool = False) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and status not in (204, 304):
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            self._break()

    def _break(self) -> None:
        _reset(self.connection)
        self.close_connection = True


def _page(html: str | None, status: int) -> bytes:
    if html:
        return b"<html><body><h1>Bad gateway</h1>"
    code = {409: "ConditionalRequestConflict"}.get(status, "InternalError")
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>We broke</Message></Error>".encode()


@contextlib.contextmanager
def stopped_server() -> Iterator[None]:
    pid = server_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def server_pid() -> int:
    """The one child of this process that is the S3 server."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = [int(pid) for children_of in children for pid in children_of.read_text().split()]
    (found,) = (pid for pid in pids if b"weed" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return found
