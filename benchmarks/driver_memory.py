"""Peak memory of the driver while a day's ids are counted for admission, at 1, 10 and 100 million distinct ids."""

import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.workload import DAY, raw_config
from features.vocabulary import Vocabulary
from features.whole_days import write_whole_day
from pipeline.cluster.session import ray_session
from pipeline.config.load import parse_config
from pipeline.ingest.units import list_days
from pipeline.log_passes.admission import seen_ids
from pipeline.storage.files import Storage

_SIZES, _QUICK_SIZES = (10**6, 10**7, 10**8), (10**6, 10**7)
_GROUP_ROWS, _FILE_ROWS = 65_536, 100 * 65_536
_ROWS, _TAIL = 100_000, 1_000
_GOAL = 1.1
_MIB = 2**20
_TABLE = {"kind": "vocabulary", "min_count": 1, "keep_days": 1, "tail_rows": _TAIL}
_SCHEMA: dict[str, Any] = {
    "tables": [{"name": "item", "num_rows": _ROWS + _TAIL, "dim": 4, "id_mapping": _TABLE}],
    "features": [{"kind": "id", "name": "item_id", "table": "item"}],
    "tasks": [{"name": "ctr", "label": "click"}],
}


@dataclass(frozen=True, slots=True)
class Count:
    """Memory of a driver, in bytes.

    Args:
        before: Memory with Ray running and the day listed.
        peak: Largest memory during the count.
        num_units: Units of the day.
    """

    before: int
    peak: int
    num_units: int


def run(quick: bool) -> dict[str, Any]:
    """Count a day of N distinct ids, each in one row of a real log, in a driver and a Ray of its own for each N.

    Every id is frequent enough to be admitted, and the table has rows for 100,000 of them. So a driver that received
    more than the update needs would receive all ids. The log has 65,536 rows a unit: more ids are more tasks too. The
    figure is the driver's anonymous memory. The object store, which is shared memory, is not in it.

    Args:
        quick: Without 100 million ids.
    """
    counts = {size: _measure(size) for size in (_QUICK_SIZES if quick else _SIZES)}
    first = counts[min(counts)]
    return {
        "rows_of_the_table": _ROWS,
        "units": {f"{size:,} ids": count.num_units for size, count in counts.items()},
        "mib_of_all_counts": {f"{size:,} ids": 16 * size // _MIB for size in counts},
        "before_mib": {f"{size:,} ids": count.before // _MIB for size, count in counts.items()},
        "peak_mib": {f"{size:,} ids": count.peak // _MIB for size, count in counts.items()},
        "over_the_fewest_ids": {f"{size:,} ids": round(count.peak / first.peak, 3) for size, count in counts.items()},
        "goal": _GOAL,
    }


def _measure(num_ids: int) -> Count:
    """Write a log of so many ids, and count them in a new process."""
    with TemporaryDirectory(prefix="counterpoise-bench-") as folder:
        write_whole_day(_files(num_ids), DAY, Path(folder, "logs"), _GROUP_ROWS)
        raw = raw_config(folder) | {"schema": _SCHEMA, "ray": {"object_store_mb": 4096}}
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as driver:
            return driver.submit(_count, raw).result()


def _files(num_ids: int) -> Iterator[pa.Table]:
    for first in range(0, num_ids, _FILE_ROWS):
        yield pa.table({"item_id": np.arange(first, min(first + _FILE_ROWS, num_ids))})


def _count(raw: dict[str, Any]) -> Count:
    """Count the ids of a day, as the driver of a command.

    Raises:
        RuntimeError: Ids were lost or counted twice.
    """
    config = parse_config(raw, "benchmark")
    (day,) = list_days(Storage(config.logs.path), [DAY.isoformat()], config.ingest.unit.max_rows)
    empty = {table.name: Vocabulary.empty(table) for table in config.log_schema.tables}
    with ray_session(config), _OwnMemory() as memory:
        before = memory.peak
        found = seen_ids(config, empty, [day])["item"]
    if (found.num_seen, len(found.new)) != (day.num_rows, _ROWS):
        raise RuntimeError(f"{found.num_seen:,} ids of {day.num_rows:,}, and {len(found.new):,} for {_ROWS:,} rows")
    return Count(before, memory.peak, len(day.units))


class _OwnMemory:
    """Sampler of this process's anonymous memory in a thread, as a context manager.

    Attributes:
        peak: Largest memory so far, in bytes.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_OwnMemory":
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self._sample()

    def _sample(self) -> None:
        lines = Path("/proc/self/status").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("RssAnon"))
        self.peak = max(self.peak, 1024 * int(line.split()[1]))
