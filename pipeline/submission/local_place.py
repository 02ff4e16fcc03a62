"""Jobs on this machine: processes that outlive the command that starts them."""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from pipeline.lineage.lease import is_gone, this_process
from pipeline.storage.files import Storage
from pipeline.submission.code_version import code_version
from pipeline.submission.job import FOLDER, Job, parse_submission
from pipeline.submission.job_record import JobRecord, read_record
from pipeline.submission.place import Phase, Submission, environment

_PROJECT = Path(__file__).parents[2]
_BEGINS_S = 120.0
_LOOK_S = 0.2


class LocalPlace:
    """This machine.

    Args:
        root: Root of the project, where the records are.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._storage = Storage(root).under(FOLDER)

    def find(self, job_name: str) -> list[Submission]:
        """Return the submissions of a job that have a record, in the order of their numbers."""
        names = [name.removesuffix(".json") for name in self._storage.names() if name.endswith(".json")]
        found = sorted(found for name in names if (found := parse_submission(name)) and found[0] == job_name)
        return [seen for name, number in found if (seen := self.look(f"{name}-r{number}")) is not None]

    def start(self, job: Job, number: int) -> bool:
        """Start a process; return False if a submission of that name exists already."""
        name = job.submission(number)
        words = [sys.executable, "-m", f"jobs.{job.command}", *job.words]
        claim = JobRecord(
            submission=name,
            command=shlex.join(words),
            host=os.uname().nodename,
            process=this_process(),  # of the submitter, until the command itself writes it
            code=code_version(),
            digest=job.digest,
            began=datetime.now(UTC).isoformat(),
        )
        if not self._storage.create(f"{name}.json", claim.to_bytes()):
            return False
        with _log_of(name).open("wb") as log:
            process = subprocess.Popen(
                words,
                cwd=_PROJECT,
                env=os.environ | environment(job, number),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._await_begin(name, process)
        return True

    def _await_begin(self, name: str, process: "subprocess.Popen[bytes]") -> None:
        """Wait until the command has written its own record, or has ended."""
        until = time.monotonic() + _BEGINS_S
        while process.poll() is None and time.monotonic() < until:
            record = read_record(self._root, name)
            if record is not None and record.process.pid == process.pid:
                return
            time.sleep(_LOOK_S)

    def look(self, submission: str) -> Submission | None:
        """Return the state of a submission; a process of another machine counts as running until its record ends."""
        record = read_record(self._root, submission)
        known = parse_submission(submission)
        if record is None or known is None:
            return None
        phase, text = _state(record)
        return Submission(submission, known[1], phase, text, record.digest, command=record.command)

    def wait(self, submission: str, seconds: float) -> None:
        """Wait a moment."""
        time.sleep(min(_LOOK_S, seconds))

    def log(self, submission: str) -> str | None:
        """Return the output of the process."""
        try:
            return _log_of(submission).read_text(errors="replace")
        except FileNotFoundError:
            return None

    def advice(self, submission: str) -> str:
        """Return how to see the log of a submission, and how to stop it."""
        record = read_record(self._root, submission)
        pid = record.process.pid if record else "PID"
        return f"its log is {_log_of(submission)}; kill {pid} stops it"


def _state(record: JobRecord) -> tuple[Phase, str]:
    if record.exit_code is not None:
        return "ended", f"exit code {record.exit_code}"
    if is_gone(record.process):
        return "ended", "was killed"
    return "running", f"process {record.process.pid} on {record.host}"


def _log_of(submission: str) -> Path:
    return Path(tempfile.gettempdir()) / f"counterpoise-{submission}.log"
