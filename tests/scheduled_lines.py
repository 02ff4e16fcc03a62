"""A line that a schedule trains: the launcher against a Kubernetes API, an operator, and jobs that end in any way."""

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from kubernetes_server import NAMESPACE, KubernetesServer
from small_daily import FIRST, World, config_of, history, run

from features.errors import DataError
from pipeline.config.project import Config
from pipeline.lineage.lease import this_process
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.submission.job import Job
from pipeline.submission.job_record import Recorder, record_url
from pipeline.submission.kubernetes_api import KubernetesApi
from pipeline.submission.kubernetes_place import KubernetesPlace
from pipeline.submission.launcher import Launcher
from pipeline.submission.rayjob import template_of
from pipeline.submission.schedule import Decision, Window

CONFIG = "/etc/counterpoise/config.yaml"


TEMPLATE = Path(__file__).parents[1] / "k8s/overlays/prod-cpu/rayjob.yaml"


def template(root: Path) -> dict[str, Any]:
    """The RayJob of the overlay for CPUs, with the root on a claim."""
    rayjob = template_of(None, str(TEMPLATE))
    head = rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    head["volumes"].append({"name": "root", "persistentVolumeClaim": {"claimName": "root"}})
    head["containers"][0]["volumeMounts"].append({"name": "root", "mountPath": str(root)})
    return rayjob


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, str]]]:
    """Objects that were posted to the webhook of the environment."""
    said: list[dict[str, str]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            said.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("COUNTERPOISE_WEBHOOK", f"http://127.0.0.1:{server.server_port}/secret")
    yield said
    server.shutdown()
    server.server_close()


class Scheduled:
    """A line of daily jobs in small, its cluster, and a launcher."""

    def __init__(self, root: Path, server: KubernetesServer, world: World | None = None) -> None:
        self.root, self.server, self.world = root, server, world or World()
        self.config: Config = config_of(root)
        self.line = Line.of(str(root), "main")

    def write_log(self, day: str) -> None:
        folder = self.root / "logs" / f"dt={day}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a.parquet").write_bytes(b"")

    def job_of(self, day: str) -> Job:
        words = ("--config", CONFIG, "--day", day, "--max-catch-up", "0")
        return Job("daily", words, self.config, "main", (day,))

    def launcher(self) -> Launcher:
        api = KubernetesApi(NAMESPACE)
        return Launcher(self.config, api, KubernetesPlace(api, template(self.root), None), self.job_of)

    def tick(self, last: str, *, again: bool = False, submissions: int = 3) -> Decision:
        return self.launcher().tick(Window(FIRST, last, submissions), again=again)

    def published(self) -> list[str]:
        return [day for day, _, _ in history(self.line)]

    def newest(self) -> str | None:
        entry = Ledger(self.line).newest()
        return entry.day if entry else None

    # What the operator and the pods do.

    def living(self) -> list[str]:
        ended = {"Complete", "Failed", "ValidationFailed"}
        status = lambda name: self.server.read(name).get("status", {}).get("jobDeploymentStatus")  # noqa: E731
        return [name for name in self.server.names() if status(name) not in ended]

    def run_job(self, name: str, *, kill_at: int | None = None, records_end: bool = True, **options: Any) -> int | None:
        """Run the command of a RayJob to its end, or kill it at a write; return its exit code."""
        day = self.server.read(name)["metadata"]["labels"]["counterpoise/day"]
        self.server.set_status(name, "Running", "RUNNING", startTime="now")
        recorder = Recorder(record_url(str(self.root), name), this_process())
        os.environ.pop("COUNTERPOISE_JOB_CODE", None)
        recorder.begin("daily")
        code, line = self._outcome(day, kill_at, options)
        if code is None:
            self.server.set_status(name, "Failed", "FAILED", reason="AppFailed")
            return None
        if records_end:
            recorder.end(code, line)
        self.server.set_status(name, *(("Complete", "SUCCEEDED") if code == 0 else ("Failed", "FAILED")))
        return code

    def _outcome(self, day: str, kill_at: int | None, options: dict[str, Any]) -> tuple[int | None, dict[str, Any]]:
        try:
            result = run(self.config, self.line, self.world, day, kill_at, **options)
        except DataError as error:
            return 3, {"error": str(error)} | getattr(error, "figures", {})
        return (None, {}) if result is None else (0, json.loads(json.dumps(result)))
