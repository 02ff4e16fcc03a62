"""S3 for a run: waits for a server that is away for a while, and reports a refusal at once and in one line.

s3fs alone gives up a refused connection at once and an answer of 500 within seconds, and its retries count anew for
each request. Here every request, with the body of its answer, is tried until it succeeds or the server has been away
for `WAIT_S`. All requests of a process share that clock.
"""

import asyncio
import io
import logging
import random
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

from aiohttp import ClientPayloadError
from botocore.exceptions import (
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from botocore.parsers import ResponseParserError
from fsspec.asyn import FSTimeoutError, sync_wrapper
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error

from features.errors import ConfigError

logger = logging.getLogger(__name__)

WAIT_S = 90.0
"""Time for which a server may be away, or answer that it cannot, before a request fails."""
WRITER = "writer"
"""Metadata by which a conditional or multi-part put that is sent again recognises itself."""

_QUIET_S = 2.0  # a dropped idle connection, or a single 500, is not worth a line in the log
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_READ_AHEAD = 64 << 10  # bytes; s3fs' own 50 MiB would read other ranks' shards along with this one's
_PIECE_BYTES = 1 << 20
_WRITE_PART = 50 << 20  # bytes; S3 takes at most 10,000 parts

_PASSING_ERRORS = (
    NoConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ResponseParserError,  # proxies and overloaded servers answer in HTML
    ClientPayloadError,
    FSTimeoutError,
    ConnectionError,
    TimeoutError,
)
_PASSING_STATUS = {429, 500, 502, 503, 504}
# 4xx answers that ask for the same request again; a condition on a key in the course of writing is undecided.
_PASSING_CODES = {
    "InternalError",
    "SlowDown",
    "ServiceUnavailable",
    "RequestTimeout",
    "XAmzContentSHA256Mismatch",
    "ConditionalRequestConflict",
    "OperationAborted",
}


class _Outage:
    """Start of the present outage, over all file systems of the process: one outage is waited for once.

    Otherwise a process would wait anew in each step of its way out: for the write, for the removal of its files, for
    the record of its end.
    """

    def __init__(self) -> None:
        self._began = self._newest = float("-inf")
        self._told = False

    def length(self, endpoint: str, reason: str) -> float:
        """Note a failure; return the time for which requests have been failing, with no success in between."""
        now = time.monotonic()
        if now - self._newest > WAIT_S:  # no request since: this may well be another outage
            self._began, self._told = now, False
        self._newest = now
        if now - self._began > _QUIET_S and not self._told:
            self._told = True
            logger.warning("S3 at %s does not serve (%s): waiting for up to %.0f s", endpoint, reason, WAIT_S)
        return now - self._began

    def end(self) -> None:
        """Note a success."""
        if self._told:
            logger.warning("S3 serves again after %.0f s", time.monotonic() - self._began)
        self._began = self._newest = float("-inf")
        self._told = False


class PatientS3FileSystem(S3FileSystem):
    """s3fs with this project's settings, for DCP's reader and writer as well.

    Endpoint and credentials come from the environment or the instance's role.
    """

    retries = 1  # s3fs' own; this class waits
    connect_timeout = 10
    read_timeout = 30
    outage = _Outage()

    def __init__(self, **settings: Any) -> None:
        ours = {
            "use_listings_cache": False,  # other processes write here too
            "max_concurrency": 1,  # saves a request for the size before each read
            "config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": 1}},
        }
        super().__init__(**(ours | settings))
        self._uploads: dict[str, str] = {}  # writers of the multi-part uploads in progress

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **settings: Any) -> Any:
        return super()._open(path, mode, block_size or (_READ_AHEAD if "r" in mode else _WRITE_PART), **settings)

    async def _mkdir(self, path: str, acl: Any = False, create_parents: bool = True, **_: Any) -> None:
        """Do nothing: S3 has no folders, and a misspelt name must not create a bucket."""

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing: S3 has no folders."""

    async def _entries(self, path: str) -> list[dict[str, Any]]:
        """Return what is directly below a path; `ls` also looks into the folder above, which a policy may not allow."""
        return await self._lsdir(path, refresh=True)

    async def _children(self, path: str) -> list[str]:
        """Return the paths directly below a path."""
        return [entry["name"] for entry in await self._entries(path)]

    async def _writer_of(self, path: str) -> str | None:
        """Return the writer of an object from its metadata; None without an object or a signature."""
        bucket, key, _ = self.split_path(path)
        try:
            return (await self._call_s3("head_object", Bucket=bucket, Key=key))["Metadata"].get(WRITER)
        except FileNotFoundError:
            return None

    entries = sync_wrapper(_entries)
    children = sync_wrapper(_children)
    writer_of = sync_wrapper(_writer_of)
    mkdir = sync_wrapper(_mkdir)
    makedirs = sync_wrapper(_makedirs)

    async def _call_s3(self, method: str, *parameters: Any, **request: Any) -> Any:
        """Send one request until it is answered; all of s3fs' requests pass through here."""
        if method == "create_multipart_upload":
            request["Metadata"] = {WRITER: uuid.uuid4().hex} | request.get("Metadata", {})
        answer = await self._send_until_answered(method, *parameters, **request)
        if method == "create_multipart_upload":
            self._uploads[answer["UploadId"]] = request["Metadata"][WRITER]
        elif method in ("complete_multipart_upload", "abort_multipart_upload"):
            self._uploads.pop(request["UploadId"], None)
        return answer

    call_s3 = sync_wrapper(_call_s3)  # s3fs' own wraps s3fs' own, and writing a file goes through it

    async def _send_until_answered(self, method: str, *parameters: Any, **request: Any) -> Any:
        pause, failing_since = _FIRST_PAUSE_S, None
        body = _Body(request) if method == "get_object" else None
        while True:
            try:
                answer = await self._send(body, method, *parameters, **request)
            except Exception as error:
                if not _passes(error):
                    self.outage.end()
                    if failing_since is not None and await self._was_completed(method, request, error):
                        return {}
                    _explain(error, method, request)
                    raise
                failing_since = failing_since or time.monotonic()
                self._wait_or_give_up(error, request, time.monotonic() - failing_since)
            else:
                self.outage.end()
                return answer
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # spreads the retries of ranks that failed together
            pause = min(1.7 * pause, _LONGEST_PAUSE_S)

    async def _send(self, body: "_Body | None", method: str, *parameters: Any, **request: Any) -> Any:
        if body is not None:
            request = body.rest()
        try:
            answer = await super()._call_s3(method, *parameters, **request)
        except OSError as error:
            if body is not None and body.begin_again(error):
                answer = await super()._call_s3(method, *parameters, **body.rest())
            else:
                raise
        if body is not None:  # the body is a part of the answer: a connection that breaks in it is waited for too
            answer = await body.take(answer)
        refused = [entry for entry in answer.get("Errors", ()) if entry.get("Code") != "NoSuchKey"]
        if method == "delete_objects" and refused:  # s3fs ignores it
            raise translate_boto_error(ClientError({"Error": refused[0]}, "DeleteObjects"))
        return answer

    def _wait_or_give_up(self, error: Exception, request: dict[str, Any], failing_s: float) -> None:
        """Return if the request is to be sent again.

        Raises:
            ConnectionError: The server has been away for too long.
        """
        endpoint = urlsplit(self._s3.meta.endpoint_url).netloc.rpartition("@")[2] if self._s3 is not None else "?"
        reason = _reason(error)
        failing_s = max(failing_s, self.outage.length(endpoint, reason))
        if failing_s >= WAIT_S:
            raise ConnectionError(
                f"{_place(request)}: S3 at {endpoint} has not served for {failing_s:.0f} s ({reason}): when it does "
                "again, run the same command again"
            ) from error

    async def _was_completed(self, method: str, request: dict[str, Any], error: Exception) -> bool:
        """Return True if a multi-part upload is unknown because it was completed, and the answer was lost."""
        if method != "complete_multipart_upload" or not isinstance(error, FileNotFoundError):
            return False
        path = f"{request['Bucket']}/{request['Key']}"
        return await self._writer_of(path) == self._uploads.get(request["UploadId"], "")


class _Body:
    """Body of an answer, which goes on where a connection broke off, with the interface of s3fs' bodies.

    Args:
        request: Request of the object, or of a range of it.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self._request = request
        self._pieces: list[bytes] = []
        self._first: dict[str, Any] | None = None  # the first answer: the whole object's, or the whole range's
        self._whole = io.BytesIO()

    def rest(self) -> dict[str, Any]:
        """Return the request of what is missing, of the same version of the object."""
        begin, end = _range(self._request.get("Range"))
        if not self._pieces or self._first is None or begin is None or "ETag" not in self._first:
            self._forget()
            return self._request
        begin += sum(map(len, self._pieces))
        return self._request | {"Range": f"bytes={begin}-{end}", "IfMatch": self._first["ETag"]}

    def begin_again(self, error: OSError) -> bool:
        """Return True, and forget what there is, if the object has been replaced since."""
        replaced = bool(self._pieces) and error_code(error) in {"PreconditionFailed", "412", "InvalidRange", "416"}
        if replaced:
            self._forget()
        return replaced

    async def take(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Read the body of an answer to `rest`; return the first answer, with the whole body."""
        stream = answer["Body"]
        try:
            if self._first is None:
                self._first = answer
            elif answer.get("ETag") != self._first["ETag"]:  # a server that knows no conditions of a GET
                self._forget()
                raise ConnectionError("the object was replaced while it was read")
            while piece := await stream.read(_PIECE_BYTES):
                self._pieces.append(piece)
        finally:
            stream.close()
        self._whole, self._pieces = io.BytesIO(b"".join(self._pieces)), []
        return self._first | {"Body": self}

    async def read(self, size: int = -1) -> bytes:
        """Return the next bytes of the whole body."""
        return self._whole.read(size)

    def close(self) -> None:
        """Do nothing: the connection is closed."""

    def _forget(self) -> None:
        self._pieces, self._first = [], None


def _range(header: str | None) -> tuple[int | None, str]:
    """Return the begin of a requested range, and its end as the header has it; no begin for the last bytes."""
    begin, _, end = (header or "bytes=0-").removeprefix("bytes=").partition("-")
    return (int(begin) if begin else None), end


def _response(error: BaseException) -> dict[str, Any]:
    """Return S3's answer to a request that it refused; s3fs keeps it as the cause of its own error."""
    for candidate in (error, error.__cause__):
        if isinstance(candidate, ClientError):
            return candidate.response
    return {}


def error_code(error: BaseException) -> str | None:
    """Return S3's name of an error, e.g. `PreconditionFailed`; None if it did not answer."""
    return _response(error).get("Error", {}).get("Code")


def _passes(error: Exception) -> bool:
    response = _response(error)
    if response:
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status in _PASSING_STATUS or error_code(error) in _PASSING_CODES
    return isinstance(error, _PASSING_ERRORS)


def _reason(error: Exception) -> str:
    code = error_code(error)
    if code is None:
        return type(error).__name__  # its text has the whole url
    status = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return f"{code}, status {status}" if status and str(status) != code else code


def _place(request: dict[str, Any]) -> str:
    key = request.get("Key") or request.get("Prefix") or ""
    return f"s3://{request.get('Bucket', '')}/{key}"


def _explain(error: Exception, method: str, request: dict[str, Any]) -> None:
    """Raise an error that names the place and the remedy, if s3fs' own does not."""
    place, bucket = _place(request), request.get("Bucket")
    if error_code(error) == "NoSuchBucket" or (method == "head_bucket" and isinstance(error, FileNotFoundError)):
        raise ConfigError(f"{place}: there is no bucket {bucket!r}: create it, or correct the url") from error
    if isinstance(error, PermissionError):
        raise PermissionError(
            f"{place}: S3 refuses {method} ({_reason(error)}): check the credentials and their policy"
        ) from error
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        raise PermissionError(
            f"{place}: no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
        ) from error
