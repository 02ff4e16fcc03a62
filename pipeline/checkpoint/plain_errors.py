"""Errors of torch.distributed.checkpoint as ordinary exceptions in one line."""

import contextlib
from collections.abc import Iterator

from torch.distributed.checkpoint.api import CheckpointException

from features.errors import DataError
from pipeline.lineage.stored_checkpoint import DamagedFile


@contextlib.contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Raise DCP's errors as ordinary exceptions: a thread loses a `BaseException`, and DCP's has a traceback per rank.

    Data that all ranks refuse stay a DataError: a retry would not help. A damaged file stays one.
    """
    try:
        yield
    except CheckpointException as error:
        refused = [met for met, _ in error.failures.values() if isinstance(met, DataError)]
        if refused and len(refused) == len(error.failures):
            damaged = next((met for met in refused if isinstance(met, DamagedFile)), None)
            if damaged is not None:
                raise DamagedFile(f"{what}: {damaged}", damaged.file) from error
            raise DataError(f"{what}: {refused[0]}") from error
        ranks = (f"rank {rank}: {type(met).__name__}: {met}" for rank, (met, _) in error.failures.items())
        raise RuntimeError(f"{what}: {'; '.join(ranks)}") from error
