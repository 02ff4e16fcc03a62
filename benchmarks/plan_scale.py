"""Seconds and bytes of planning, audit and checkpoint of a day of 10^10 rows in 152,588 units, for 64 and 512 ranks.

No row is read. The ratio is the largest part of a limit that a figure takes: 2 s for each time, 5 MB for each size.
"""

import pickle
import time
from collections.abc import Callable
from typing import Any, TypeVar

import ray

from benchmarks.workload import load, project
from pipeline.config.ingest import IngestConfig
from pipeline.ingest.bundles import group_bundles
from pipeline.ingest.cursor import DayCursor, audit, expected_sums, joined_sums, union
from pipeline.ingest.lanes import ResumePoint
from pipeline.ingest.parts import whole_days
from pipeline.ingest.plan import RunPlan, StreamStart
from pipeline.ingest.units import DayLog, Unit, Units, audit_sum
from pipeline.lineage.manifest import position_files

_DAY, _UNITS, _QUICK_UNITS, _UNIT_ROWS = "2026-03-01", 152_588, 15_259, 65_536
_GROUPS_PER_FILE = 100
_LIMIT_S, _LIMIT_MB = 2.0, 5.0

Result = TypeVar("Result")


def run(quick: bool) -> dict[str, Any]:
    """Measure a day's plan, from its start and from a checkpoint at its half, and the end of the day.

    Args:
        quick: A tenth of the units.
    """
    num_units = _QUICK_UNITS if quick else _UNITS
    with project(1000, 500, 500) as folder:
        _, encoder, _ = load(folder)
    files = [f"dt={_DAY}/part-{number:05d}.parquet" for number in range(-(-num_units // _GROUPS_PER_FILE))]
    log = DayLog(
        _DAY,
        Units(
            Unit(_DAY, files[number // _GROUPS_PER_FILE], number % _GROUPS_PER_FILE, 0, _UNIT_ROWS, whole=True)
            for number in range(num_units)
        ),
        dict.fromkeys(files, "1-0"),
    )
    plan = RunPlan(None, whole_days([log]), 1, encoder, IngestConfig(), 1, (StreamStart,))  # pyright: ignore[reportArgumentType]
    found = {f"{num_ranks} ranks": _measure(plan, log, num_ranks) for num_ranks in (64, 512)}
    of_limit = [
        value / (_LIMIT_S if name.endswith("_s") else _LIMIT_MB)
        for figures in found.values()
        for name, value in figures.items()
    ]
    return {"ratio": round(max(of_limit), 2), "units": num_units, **found}


def _measure(plan: RunPlan, log: DayLog, num_ranks: int) -> dict[str, float]:
    """Return times in seconds, by names that end with `_s`, and sizes in MB, by names that end with `_mb`."""
    figures: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Result]) -> Result:
        began = time.perf_counter()
        result = work()
        figures[f"{name}_s"] = round(time.perf_counter() - began, 3)
        return result

    segments = timed("deal", lambda: plan.segments([StreamStart()], num_ranks))
    bundles = timed("turns", lambda: plan.bundles(segments, num_ranks))
    tasks = timed("tasks", lambda: list(group_bundles(bundles)))
    common = ray.cloudpickle.dumps(plan.read_plan(segments))
    timed("a_task_gets", lambda: (pickle.loads(common), pickle.loads(pickle.dumps(tasks[len(tasks) // 2]))))
    lanes = segments[0].dealt.lanes
    ranks = timed("half_a_day", lambda: _half(log, lanes))
    cursor = timed("union", lambda: union(ranks))
    stored = timed("cursor_of_a_save", lambda: cursor.to_stored(log.units))
    written = timed("files_of_a_save", lambda: position_files(plan.parts[0], lanes, stored))
    keys = [[log.units[index].key for index in lane] for lane in lanes]
    point = ResumePoint("checkpoint", 0, _DAY, _DAY, stored, keys, False, 1, True, log.files)
    resumed = timed("deal_of_a_resume", lambda: plan.segments([StreamStart("1", point)], num_ranks))
    timed("audit_of_a_rank", lambda: expected_sums(log.units, 0, num_ranks))
    expected = joined_sums([expected_sums(Units(log.units[:1]))] * len(log.units))
    timed("audit_of_all_on_rank_0", lambda: audit(cursor, log.units, expected))
    sizes = {
        "common_to_tasks": common,
        "a_task": pickle.dumps(tasks[len(tasks) // 2]),
        "headers_of_all_ranks": resumed[0].header.to_json().encode() * num_ranks,
        "units_of_a_worker": pickle.dumps(log.units),
        "cursor_of_a_rank": pickle.dumps(ranks[0]),
        **written,
    }
    return figures | {f"{name}_mb": round(len(data) / 1e6, 3) for name, data in sizes.items()}


def _half(log: DayLog, lanes: list[list[int]]) -> list[DayCursor]:
    """Return the cursor of each rank after the first half of its lane."""
    total = audit_sum(1, log.units.num_rows[:10])  # of any rows: sums are as large for all
    halves = [lane[: len(lane) // 2] for lane in lanes]
    return [
        DayCursor(dict.fromkeys(half, _UNIT_ROWS), dict.fromkeys(half, total), [10**9] * 5, {}, 0) for half in halves
    ]
