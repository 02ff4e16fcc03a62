"""Record of a submission in the root: that its command began, how it ended, and its JSON line.

A RayJob's status has no exit code. So the command itself writes it, to the file that the submitter names in the
environment. A command that was killed leaves a record without an end.
"""

import logging
import os
import shlex
import socket
import sys
import time
from datetime import UTC, datetime
from typing import Any, ClassVar

from features.errors import ConfigError
from pipeline.lineage.records import ProcessIdentity
from pipeline.storage.files import Storage
from pipeline.storage.record import Record
from pipeline.submission.code_version import code_version
from pipeline.submission.entry_words import CODE_VARIABLE, DIGEST_VARIABLE, decode
from pipeline.submission.job import FOLDER

logger = logging.getLogger(__name__)

_TRIES_S = (0, 5, 30)  # an end that is not written costs a whole job


class OtherCode(ConfigError):  # noqa: N818 - it is what the command says
    """Refusal of a cluster that has another code than the submitter; says nothing of the day or the arguments.

    Attributes:
        figures: Part of the command's JSON line.
    """

    figures: ClassVar[dict[str, Any]] = {"other_code": True}


class JobRecord(Record):
    """Record of one submission of a job.

    Args:
        submission: Name of the submission.
        command: The command, as a shell reads it.
        host: Machine or pod on which it ran.
        process: Process of the command, by which another command of the same machine finds it gone.
        code: Version of the code that ran.
        digest: `Job.digest` of the submission; absent: the submitter did not say.
        began: Moment, ISO 8601.
        ended: Moment, ISO 8601; absent: the command runs, or was killed.
        exit_code: Exit code; absent: as `ended`.
        line: JSON line of the command; absent: as `ended`.
    """

    submission: str
    command: str
    host: str
    process: ProcessIdentity
    code: str
    digest: str | None = None
    began: str
    ended: str | None = None
    exit_code: int | None = None
    line: dict[str, Any] | None = None


class Recorder:
    """Writer of this process' record.

    Args:
        url: Place of the record, as `record_url` returns it.
        process: Identity of this process.
    """

    def __init__(self, url: str, process: ProcessIdentity) -> None:
        folder, _, self._name = url.rpartition("/")
        self._storage, self._process = Storage(folder), process
        self._record: JobRecord | None = None

    def begin(self, name: str) -> None:
        """Write that the command began.

        Args:
            name: Name of the command.

        Raises:
            OtherCode: The code, Python or Ray is not that of the submitter.
        """
        here, expected = code_version(), os.environ.get(CODE_VARIABLE)
        self._record = JobRecord(
            submission=self._name.removesuffix(".json"),
            command=shlex.join(["python", "-m", f"jobs.{name}", *decode(sys.argv[1:])]),
            host=socket.gethostname(),
            process=self._process,
            code=here,
            digest=os.environ.get(DIGEST_VARIABLE),
            began=datetime.now(UTC).isoformat(),
        )
        self._storage.write(self._name, self._record.to_bytes())
        if expected is not None and expected != here:
            raise OtherCode(
                f"this cluster has {here}, the job was submitted with {expected}: use an image or a checkout of the "
                "same commit on both sides"
            )

    def end(self, exit_code: int, line: dict[str, Any]) -> None:
        """Write how the command ended; a storage that does not answer is only logged, after some tries."""
        if self._record is None:
            return
        ended = {"ended": datetime.now(UTC).isoformat(), "exit_code": exit_code, "line": line}
        data = self._record.model_copy(update=ended).to_bytes()
        for pause in _TRIES_S:
            time.sleep(pause)
            try:
                self._storage.write(self._name, data)
                return
            except Exception as error:  # noqa: BLE001 - the command's own end matters more
                logger.warning("the end of %s is not recorded: %s", self._name, error)


def record_url(root: str, submission: str) -> str:
    """Return the place of a submission's record."""
    return f"{Storage(root).url}/{FOLDER}/{submission}.json"


def read_record(root: str, submission: str) -> JobRecord | None:
    """Return the record of a submission; None if its command has not begun.

    Raises:
        ConfigError: The file is damaged, or of a later version.
    """
    try:
        return JobRecord.from_bytes(Storage(root).under(FOLDER).read(f"{submission}.json"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(f"{record_url(root, submission)} cannot be read: {error}") from error
