"""Kubernetes API over HTTP for RayJobs, ConfigMaps and Events, and the operator's part, to test who talks to them.

It keeps objects in memory, as an API server does: versions, label selectors, pages, watches, conflicts of names, a
token. Faults are put in a queue: an answer that is an error, or a connection that ends before or after the work.
COUNTERPOISE_TEST_KUBERNETES names a real API, e.g. of `kubectl proxy`, for the tests that need no faults. They need the
CRDs of KubeRay and a namespace `ranking`, and no operator.
"""

import json
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from pipeline.submission.kubernetes_api import API_VARIABLE, KubernetesApi

NAMESPACE = "ranking"
_PATH = re.compile(r"/(?:api|apis/([^/]+))/v1/namespaces/[^/]+/([^/]+)(?:/([^/]+))?(?:/(proxy/.*))?")


@dataclass
class Fault:
    """A fault of one request.

    Args:
        status: Answer; 0: the connection ends without one.
        verb: Verb that it waits for; empty: any.
        after: True if the work is done before.
        headers: Headers of the answer.
    """

    status: int
    verb: str = ""
    after: bool = False
    headers: dict[str, str] = field(default_factory=dict)


class KubernetesServer:
    """An API server on a free port of the loopback.

    Attributes:
        calls: (verb, resource) of every request, in order.
        faults: Faults of the next requests.
        token: Token that requests must have; empty: none.
        refuse: Returns the reason for which an object is refused.
        services: Answer of a service, by path.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.token = ""
        self.refuse: Callable[[dict[str, Any]], str | None] = lambda _: None
        self.services: dict[str, str] = {}
        self.requests: list[dict[str, str]] = []
        self._objects: dict[tuple[str, str], dict[str, Any]] = {}
        self._events: list[tuple[int, str, dict[str, Any]]] = []
        self._version = 0
        self.changed = threading.Condition()
        server = self

        class Handler(_Handler):
            owner = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def names(self, resource: str = "rayjobs") -> list[str]:
        return sorted(name for kind, name in self._objects if kind == resource)

    def read(self, name: str, resource: str = "rayjobs") -> dict[str, Any]:
        return self._objects[resource, name]

    def set_status(self, name: str, deployment: str, job: str | None = None, **status: Any) -> None:
        """Write the status of a RayJob, as the operator does."""
        with self.changed:
            found = self._objects["rayjobs", name]
            said = {"jobDeploymentStatus": deployment} | ({"jobStatus": job} if job else {}) | status
            self._put("rayjobs", found | {"status": found.get("status", {}) | said}, "MODIFIED")

    def remove(self, name: str, resource: str = "rayjobs") -> bool:
        with self.changed:
            found = self._objects.pop((resource, name), None)
            if found is not None:
                self._version += 1
                self._events.append((self._version, "DELETED", found))
                self.changed.notify_all()
            return found is not None

    def create(self, resource: str, content: dict[str, Any]) -> bool:
        with self.changed:
            if (resource, content["metadata"]["name"]) in self._objects:
                return False
            given = {"uid": str(uuid.uuid4()), "creationTimestamp": datetime.now(UTC).isoformat(timespec="seconds")}
            content["metadata"] |= given
            self._put(resource, content, "ADDED")
            return True

    def _put(self, resource: str, content: dict[str, Any], event: str) -> None:
        self._version += 1
        content["metadata"] |= {"resourceVersion": str(self._version)}
        self._objects[resource, content["metadata"]["name"]] = content
        self._events.append((self._version, event, json.loads(json.dumps(content))))
        self.changed.notify_all()

    def listed(self, resource: str, query: dict[str, str]) -> dict[str, Any]:
        with self.changed:
            wanted = [pair.split("=") for pair in query.get("labelSelector", "").split(",") if pair]
            found = [content for (kind, _), content in sorted(self._objects.items()) if kind == resource]
        found = [one for one in found if all(one["metadata"].get("labels", {}).get(k) == v for k, v in wanted)]
        first = int(query.get("continue") or 0)
        last = first + int(query.get("limit") or len(found) or 1)
        more = {"continue": str(last)} if last < len(found) else {}
        return {"kind": "List", "metadata": {"resourceVersion": str(self._version)} | more, "items": found[first:last]}

    def after(self, version: int, name: str, until: float) -> Iterator[dict[str, Any]]:
        """Yield events after a version, until a moment."""
        while time.monotonic() < until:
            with self.changed:
                new = [event for event in self._events if event[0] > version]
                if not new:
                    self.changed.wait(min(0.1, until - time.monotonic()))
            for number, kind, content in new:
                version = number
                if content["metadata"]["name"] == name:
                    yield {"type": kind, "object": content}


class _Handler(BaseHTTPRequestHandler):
    owner: KubernetesServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        found = _PATH.fullmatch(url.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if found is None:
            return self._answer(404, {"message": f"no such path {url.path}"})
        group, resource, name, proxy = found.groups()
        verb = _verb(self.command, name, query)
        self.owner.calls.append((verb, "/".join(filter(None, [group, resource, "proxy" if proxy else None]))))
        self.owner.requests.append(dict(self.headers))
        if self.owner.token and self.headers.get("Authorization") != f"Bearer {self.owner.token}":
            return self._answer(401, {"message": "Unauthorized"})
        fault = self._fault(verb)
        if fault and not fault.after:
            return self._fail(fault)
        if proxy:
            text = self.owner.services.get(f"{name}/{proxy}")
            return self._answer(200 if text else 503, text or {"message": "no endpoints"})
        if verb == "watch":
            return self._watch(name or query["fieldSelector"].partition("=")[2], query)
        status, content = self._work(verb, resource, name or "", query, body)
        return self._fail(fault) if fault else self._answer(status, content)

    do_GET = do_POST = do_DELETE = _handle  # noqa: N815 - names of http.server

    def _work(self, verb: str, resource: str, name: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        owner = self.owner
        if verb == "list":
            return 200, owner.listed(resource, query)
        if verb == "create":
            content = json.loads(body)
            if reason := owner.refuse(content):
                return 422, {"message": reason}
            done = owner.create(resource, content)
            return (201, content) if done else (409, {"message": f"{content['metadata']['name']} already exists"})
        if name not in owner.names(resource):
            return 404, {"message": f"{resource} {name} not found"}
        if verb == "delete":
            owner.remove(name, resource)
            return 200, {"kind": "Status"}
        return 200, owner.read(name, resource)

    def _fault(self, verb: str) -> Fault | None:
        for fault in self.owner.faults:
            if fault.verb in {"", verb}:
                self.owner.faults.remove(fault)
                return fault
        return None

    def _fail(self, fault: Fault) -> None:
        if fault.status == 0:
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self._answer(fault.status, {"message": f"fault {fault.status}"}, fault.headers)

    def _watch(self, name: str, query: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        until = time.monotonic() + float(query.get("timeoutSeconds") or 60)
        for event in self.owner.after(int(query["resourceVersion"]), name, until):
            data = json.dumps(event).encode() + b"\n"
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _verb(method: str, name: str | None, query: dict[str, str]) -> str:
    if method == "GET" and query.get("watch") in {"true", "True", "1"}:
        return "watch"
    return {"GET": "get" if name else "list", "POST": "create", "DELETE": "delete"}.get(method, method.lower())


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesServer]:
    """An API server that the commands of the test reach."""
    server = KubernetesServer()
    monkeypatch.setenv(API_VARIABLE, server.url)
    yield server
    server.close()


@pytest.fixture
def any_api(cluster: KubernetesServer, monkeypatch: pytest.MonkeyPatch) -> KubernetesApi:
    """The real API server that the environment names, else this one."""
    if real := os.environ.get("COUNTERPOISE_TEST_KUBERNETES"):
        monkeypatch.setenv(API_VARIABLE, real)
    return KubernetesApi(NAMESPACE)


@pytest.fixture
def api(cluster: KubernetesServer) -> KubernetesApi:
    return KubernetesApi(NAMESPACE)
