"""The stream, from files to batches: every row is in one batch, what is planned, and what a resume is refused for.

There is no trainer here: every lane is drained by itself, with a least-rows splitter in the place of Ray's. Stops and
resumes are those of the real trainer, in test_exactly_once.py.
"""

import itertools
import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
import ray
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_streams import DAYS, SHAPES, SORTED, Shape

from features.encoding import Encoder
from features.errors import DataError
from models.batch import LogBatch
from pipeline.config.ingest import IngestConfig, ShuffleConfig, UnitConfig
from pipeline.ingest.batcher import Batcher
from pipeline.ingest.bundles import PlannedParcel, group_bundles
from pipeline.ingest.cursor import DayCursor, StoredCursor, audit, expected_sums
from pipeline.ingest.datasource import read_bundles
from pipeline.ingest.lanes import ResumePoint
from pipeline.ingest.parts import whole_days
from pipeline.ingest.plan import Header, RunPlan, StreamStart
from pipeline.ingest.receive import Segment, read_segments
from pipeline.ingest.units import DayLog, Unit, Units, list_days
from pipeline.storage.files import Storage

WriteLog = Callable[..., Storage]
_RANKS = st.integers(1, 5)
_ONE_ROW = Shape([[[1]]], passes=2)
_ONE_BATCH = Shape([[[6]], [[6]]], max_rows=3, batch_size=3, passes=2)
_SORTED = replace(SORTED, passes=2)


def _plan(shape: Shape, write_log: WriteLog, encoder: Encoder) -> RunPlan:
    logs = write_log(shape.days)
    shuffle = ShuffleConfig(units=shape.units, rows=shape.rows, interleave=shape.interleave)
    ingest = IngestConfig(batch_size=shape.batch_size, unit=UnitConfig(max_rows=shape.max_rows), shuffle=shuffle)
    parts = whole_days(list_days(logs, DAYS[: len(shape.days)], shape.max_rows))
    starts = (StreamStart,)
    return RunPlan(logs, parts, shape.passes, encoder, ingest, shape.seed, starts, block_rows=shape.block_rows)


def _split(plan: RunPlan, num_ranks: int) -> list[list[pa.Table]]:
    """The blocks of each rank. Least rows, ties by rank: of blocks of one row each, that is round and round."""
    segments = plan.segments(plan.begin_attempts(), num_ranks)
    read_plan = plan.read_plan(segments)
    tasks = group_bundles(plan.bundles(segments, num_ranks), task_rows=20)
    blank = plan.encoder.empty()
    blocks = [block for task in tasks for block in read_bundles(read_plan, task, blank)]
    return [blocks[rank::num_ranks] for rank in range(num_ranks)]


def _batches(plan: RunPlan, segment: Segment) -> Iterator[LogBatch]:
    """The batches of a lane within a segment, until it is dry."""
    ingest = plan.ingest
    units, interleave = _log_of(plan, segment.header).units, ingest.shuffle.interleave
    batcher = Batcher(plan.encoder.schema, units, segment.parcels, ingest.batch_size, interleave)
    for step in itertools.count():
        batch = batcher.next_batch(step)
        if not batch.cursor.num_rows:
            return
        yield batch


def _resume_point(plan: RunPlan, num_ranks: int, num_steps: int | None = None) -> ResumePoint:
    """Where a run stands after a number of steps of its first part, or, with `None`, at its end."""
    found: dict[tuple[int, str], tuple[Header, DayCursor]] = {}
    for blocks in _split(plan, num_ranks):
        for segment in read_segments(iter(blocks)):
            header = segment.header
            _, cursor = found.setdefault((header.pass_index, header.day), (header, DayCursor()))
            for batch in itertools.islice(_batches(plan, segment), num_steps):
                cursor.advance(batch.cursor)
            if num_steps is not None:
                break
    (place, (header, cursor)) = list(found.items())[-1]
    planned = plan.segments(plan.begin_attempts(), num_ranks)
    (lanes,) = [one.dealt.lanes for one in planned if (one.header.pass_index, one.header.day) == place]
    day = _log_of(plan, header)
    return ResumePoint(
        checkpoint="checkpoints/somewhere",
        pass_index=header.pass_index,
        day=day.day,
        log_day=day.day,
        seen=StoredCursor.from_arrow(cursor.to_stored(day.units).to_arrow()),
        lanes=[[day.units[index].key for index in lane] for lane in lanes],
        complete=num_steps is None,
        seed=plan.seed,
        shuffle_rows=plan.ingest.shuffle.rows,
        files=day.files,
    )


def _logs(plan: RunPlan) -> list[DayLog]:
    return [part.log for part in plan.parts]


def _log_of(plan: RunPlan, header: Header) -> DayLog:
    (day,) = [day for day in _logs(plan) if day.day == header.day]
    return day


def _first_numbers(plan: RunPlan) -> dict[tuple[str, int, int], int]:
    """Return the number of each unit's first row in the whole log, by file, row group and first row."""
    first, result = 0, {}
    for unit in itertools.chain(*(day.units for day in _logs(plan))):
        result[unit.file, unit.row_group, unit.first_row] = first
        first += unit.num_rows
    return result


def _rows(units: Units, batch: LogBatch, first: dict[tuple[str, int, int], int]) -> list[int]:
    """The numbers of a batch's rows; what a batch holds is what its cursor says."""
    said = []
    for span in batch.cursor.spans:
        unit = units[span.unit]
        said += [first[unit.file, unit.row_group, unit.first_row] + int(row) for row in span.rows]
    assert batch.dense[: len(said), 0].int().tolist() == said
    assert batch.labels[: len(said), 0].int().tolist() == [number % 2 for number in said]
    return said


def _once(plan: RunPlan) -> dict[tuple[int, str], Counter[int]]:
    """Return for each segment every row of its day, once."""
    ends = list(itertools.accumulate((day.num_rows for day in _logs(plan)), initial=0))
    return {
        (pass_index, day.day): Counter(range(ends[index], ends[index + 1]))
        for pass_index in range(plan.passes)
        for index, day in enumerate(_logs(plan))
    }


def _bits(batch: LogBatch) -> list[Any]:
    """All of a batch, to be compared."""
    tensors = [batch.sparse.values(), batch.sparse.lengths(), batch.dense, batch.labels, batch.in_space]
    tensors += [batch.weight, batch.slot]
    spans = [(span.unit, span.salt, span.rows.tolist()) for span in batch.cursor.spans]
    return [tensor.numpy().tobytes() for tensor in tensors] + [spans, batch.cursor.in_space.tolist()]


# --- Every row once ---


@settings(max_examples=50)
@given(shape=SHAPES, num_ranks=_RANKS)
@example(shape=_ONE_ROW, num_ranks=3)
@example(shape=_ONE_BATCH, num_ranks=2)
@example(shape=_SORTED, num_ranks=2)
def test_every_row_is_in_one_batch(shape: Shape, num_ranks: int, write_log: WriteLog, tiny_encoder: Encoder):
    """A row is lost or doubled between files, ranges, lanes, turns and batches; or it is another unit's row."""
    plan = _plan(shape, write_log, tiny_encoder)
    first, found = _first_numbers(plan), {segment: Counter() for segment in _once(plan)}
    cursors = {segment: DayCursor() for segment in found}
    counts: dict[tuple[int, str], list[int]] = {segment: [] for segment in found}
    for blocks in _split(plan, num_ranks):
        for segment in read_segments(iter(blocks)):
            place, units = (segment.header.pass_index, segment.header.day), _log_of(plan, segment.header).units
            before = found[place].total()
            for batch in _batches(plan, segment):
                assert len(batch.slot) == shape.batch_size
                found[place].update(_rows(units, batch, first))
                cursors[place].advance(batch.cursor)
            counts[place].append(found[place].total() - before)
    assert found == _once(plan)
    for (_, day), cursor in cursors.items():
        (log,) = [log for log in _logs(plan) if log.day == day]
        assert audit(cursor, log.units, expected_sums(log.units)) == []
    assert all(len(ranks) == num_ranks and max(ranks) - min(ranks) <= shape.max_rows for ranks in counts.values())


def test_dropped_and_doubled_blocks_are_seen_to_fail(write_log: WriteLog, tiny_encoder: Encoder):
    """Negative control: what `equal=True` would drop, or a task that ran twice would bring, is in the audit."""
    plan = _plan(replace(_SORTED, days=_SORTED.days[:1], passes=1), write_log, tiny_encoder)
    (day,), (blocks,) = _logs(plan), _split(plan, 1)
    for lane, expected in ((blocks, 0), (blocks[:3] + blocks[4:], 1), (blocks[:4] + blocks[3:], 1)):
        segment = next(read_segments(iter(lane)))
        cursor = DayCursor()
        cursor.advance(Batcher(tiny_encoder.schema, day.units, segment.parcels, 100, 1).next_batch(0).cursor)
        assert len(audit(cursor, day.units, expected_sums(day.units))) == expected


@settings(max_examples=20)
@given(shape=SHAPES, num_ranks=_RANKS)
def test_the_stream_is_a_function_of_its_plan(shape: Shape, num_ranks: int, write_log: WriteLog, tiny_encoder: Encoder):
    """Two runs with one seed differ, or the passes of a shuffled run are alike."""
    plan = _plan(shape, write_log, tiny_encoder)

    def stream(plan: RunPlan) -> list[list[list[Any]]]:
        lanes = [read_segments(iter(blocks)) for blocks in _split(plan, num_ranks)]
        return [[_bits(batch) for segment in lane for batch in _batches(plan, segment)] for lane in lanes]

    found = stream(plan)
    assert found == stream(plan)
    longest = max((unit.num_rows for day in _logs(plan) for unit in day.units), default=0)
    if shape.rows and shape.passes == 2 and longest > 4:  # negative control
        assert stream(replace(plan, seed=77)) != found


# --- What is planned ---


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_a_resume_reads_only_what_is_missing(num_ranks: int, write_log: WriteLog, tiny_encoder: Encoder):
    """A restart late in the day decodes all of it again, and throws it away."""
    plan = _plan(replace(_SORTED, passes=1, interleave=1), write_log, tiny_encoder)
    (day, _) = _logs(plan)
    checkpoint = _resume_point(plan, 2, 2)
    seen = {key: count for key, (count, _) in checkpoint.seen.units.items()}
    resumed = replace(plan, starts=(lambda: StreamStart(None, checkpoint),))
    bundles = resumed.bundles(resumed.segments(resumed.begin_attempts(), num_ranks), num_ranks)
    entries = [entry for bundle in bundles for entry in bundle]
    read = {day.units[entry.unit].key: entry.skip for entry in entries if entry.kind == "unit" and entry.segment == 0}
    left = {unit.key: seen.get(unit.key, 0) for unit in day.units if seen.get(unit.key, 0) < unit.num_rows}
    assert read == left
    assert 0 < len(read) < len(day.units)
    assert max(read.values()) > 0


def test_a_checkpoint_travels_in_the_first_segment_only(write_log: WriteLog, tiny_encoder: Encoder):
    """Weights are restored again at midnight, or not at all; an earlier day's checkpoint skips days."""
    plan = _plan(_SORTED, write_log, tiny_encoder)
    earlier = _resume_point(plan, 2)
    for point, left in [
        (None, [(0, DAYS[0]), (0, DAYS[1]), (1, DAYS[0]), (1, DAYS[1])]),
        (replace(earlier, day="2026-02-28"), [(0, DAYS[0]), (0, DAYS[1]), (1, DAYS[0]), (1, DAYS[1])]),
        (replace(earlier, pass_index=0, day=DAYS[0], log_day=DAYS[0]), [(0, DAYS[1]), (1, DAYS[0]), (1, DAYS[1])]),
        (replace(earlier, pass_index=0, day=DAYS[1]), [(1, DAYS[0]), (1, DAYS[1])]),
        (replace(earlier, pass_index=1, day=DAYS[1]), []),
    ]:
        segments = plan.segments([StreamStart(None, point)], 2)
        assert [(one.header.pass_index, one.header.day) for one in segments] == left
        assert [one.part.day for one in segments] == [day for _, day in left]
        name = point.checkpoint if point else None
        assert [one.header.checkpoint for one in segments] == [name, None, None, None][: len(left)]


def test_models_come_one_after_the_other(write_log: WriteLog, tiny_encoder: Encoder):
    """Catches rows of one model that are trained by another, and a checkpoint that a second model starts from."""
    plan = replace(_plan(_SORTED, write_log, tiny_encoder), passes=1)
    within, end = _resume_point(plan, 2, 1), _resume_point(plan, 2)
    starts = [StreamStart("0007", end), StreamStart("0002", within), StreamStart("0001")]
    segments = plan.segments(starts, 2)
    headers = [one.header for one in segments]
    found = [(header.model, header.day, header.attempt, header.checkpoint) for header in headers]
    assert found == [
        (1, DAYS[0], "0002", within.checkpoint),
        (1, DAYS[1], "0002", None),
        (2, DAYS[0], "0001", None),
        (2, DAYS[1], "0001", None),
    ]
    assert [header.within for header in headers] == [True, False, False, False]
    assert [header.rows_before > 0 for header in headers] == [True, False, False, False]


@settings(max_examples=20)
@given(shape=SHAPES, num_ranks=_RANKS)
def test_blocks_come_in_turns(shape: Shape, num_ranks: int, write_log: WriteLog, tiny_encoder: Encoder):
    """One blank too few, and every unit after it goes to the next rank."""
    plan = _plan(shape, write_log, tiny_encoder)
    segments = plan.segments(plan.begin_attempts(), num_ranks)
    bundles = plan.bundles(segments, num_ranks)
    assert len(bundles) % num_ranks == 0
    rows = [sum(entry.source.num_rows for entry in bundle if entry.source is not None) for bundle in bundles]
    assert all(len(bundle) == 1 or size <= shape.block_rows for bundle, size in zip(bundles, rows, strict=True))
    for rank in range(num_ranks):
        own = [entry for bundle in bundles[rank::num_ranks] for entry in bundle]
        assert [entry.segment for entry in own if entry.kind == "start"] == list(range(len(segments)))
        for segment, planned in enumerate(segments):
            assert own[0] == PlannedParcel("start", 0, text=own[0].text)
            units = [entry.unit for entry in own if entry.kind == "unit" and entry.segment == segment]
            assert units == planned.dealt.lanes[rank]
            text = next(entry.text for entry in own if entry.kind == "start" and entry.segment == segment)
            assert Header.from_json(text).to_json() == planned.header.to_json() == text


@pytest.mark.parametrize("resumed", [False, True])
def test_what_travels_does_not_grow_with_the_day(resumed: bool, tiny_encoder: Encoder):
    """All units of a day, its cursor or its lanes are in what every read task, or every rank's header, gets."""
    sizes = []
    for num_units in (40, 4000):
        units = Units(Unit(DAYS[0], f"file-{n // 8}", n % 8, 0, 9000, whole=True) for n in range(num_units))
        log = DayLog(DAYS[0], units, {})
        plan = RunPlan(Storage("nowhere"), whole_days([log]), 1, tiny_encoder, IngestConfig(), 1, (StreamStart,))
        start = StreamStart()
        if resumed:
            seen = StoredCursor({unit.key: (5, 2**63) for unit in units[: num_units // 2]}, [2**40, 7])
            lanes = [[unit.key for unit in units[rank::2]] for rank in range(2)]
            start = StreamStart("1", ResumePoint("checkpoint", 0, log.day, log.day, seen, lanes, False, 1, True, {}))
        segments = plan.segments([start], 2)
        tasks = group_bundles(plan.bundles(segments, 2))
        header = segments[0].header.to_json()
        assert json.loads(header)["rows_before"] == (5 * (num_units // 2) if resumed else 0)
        sizes.append((len(header), len(pickle.dumps(tasks[1])), len(ray.cloudpickle.dumps(plan.read_plan(segments)))))
    few, many = sizes
    assert all(more <= less + 16 for less, more in zip(few, many, strict=True))  # more digits
    assert many[0] < 400


@pytest.mark.parametrize(
    ("changes", "days", "message"),
    [
        ({"seed": 2}, None, r"trained with seed 1 and shuffle\.rows True, the config has 2 and True"),
        ({"rows": False}, None, r"trained with seed 1 and shuffle\.rows True, the config has 1 and False"),
        ({"max_rows": 3}, None, r"whose log or ingest\.unit\.max_rows has changed since"),
        ({}, [[[9, 5], [7], [1]]], r"has changed since \(1 units, e\.g\. dt=2026-03-01/part-2\.parquet#0\[0:1\]\)"),
        ({}, [[[9, 5]]], r"has changed since \(2 units, e\.g\. dt=2026-03-01/part-1\.parquet#0\[0:4\]\)"),
        ({}, [[[9, 5], [8]]], r"has changed since \(2 units, e\.g\. dt=2026-03-01/part-1\.parquet#0\[4:7\]\)"),
        ({}, [[[5, 9], [7]]], "has changed since"),
    ],
    ids=["seed", "shuffle", "max_rows", "file added", "file gone", "rows added", "rows moved"],
)
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_a_day_that_has_changed_is_not_resumed(
    changes: dict[str, Any],
    days: list[list[list[int]]] | None,
    message: str,
    num_ranks: int,
    write_log: WriteLog,
    tiny_encoder: Encoder,
):
    """The day goes on with rows of which some were trained, and the audit says so hours later, or never."""
    shape = replace(_SORTED, days=[[[9, 5], [7]]], units=False)
    plan = _plan(shape, write_log, tiny_encoder)
    checkpoint = _resume_point(plan, 2, 1)
    plan.segments([StreamStart(None, checkpoint)], num_ranks)  # negative control
    changed = _plan(replace(shape, days=days or shape.days, **changes), write_log, tiny_encoder)
    with pytest.raises(DataError, match=rf"^checkpoints/somewhere is within 2026-03-01, .*{message}") as caught:
        changed.segments([StreamStart(None, checkpoint)], num_ranks)
    assert "\n" not in str(caught.value)


def test_a_file_that_was_written_again_is_not_resumed(write_log: WriteLog, tiny_encoder: Encoder):
    """A file with as many rows but other ones goes on where the old one was, and no count shows it."""
    plan = _plan(replace(_SORTED, days=[[[9, 5], [7]]]), write_log, tiny_encoder)
    checkpoint = _resume_point(plan, 2, 1)
    file = f"dt={DAYS[0]}/part-1.parquet"
    mark = checkpoint.files[file]
    changed = replace(checkpoint, files={**checkpoint.files, file: "another"})
    message = rf"has changed since \({file} was another \(bytes and fingerprint\) and is {mark}\): restore them"
    with pytest.raises(DataError, match=message):
        plan.segments([StreamStart(None, changed)], 2)


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_a_day_with_a_quarantined_unit_is_resumed_again(num_ranks: int, write_log: WriteLog, tiny_encoder: Encoder):
    """A second resume within the day misses the unit, which is in no lane any more, and says that the log changed."""
    plan = _plan(replace(_SORTED, days=[[[9, 5], [7]]]), write_log, tiny_encoder)
    checkpoint = _resume_point(plan, 2, 1)
    (key, *_) = [unit.key for unit in _logs(plan)[0].units if unit.key not in checkpoint.seen.units]
    bad = replace(checkpoint, seen=replace(checkpoint.seen, quarantined={key: "a reason"}))
    for _ in range(2):
        dealt = plan.segments([StreamStart(None, bad)], num_ranks)[0].dealt
        lanes = [[_logs(plan)[0].units[index].key for index in lane] for lane in dealt.lanes]
        assert key not in [unit for lane in lanes for unit in lane]
        bad = replace(bad, lanes=lanes)


def test_a_finished_day_may_change(write_log: WriteLog, tiny_encoder: Encoder):
    """A seed for the next days, or a log that is archived meanwhile, stops a line."""
    plan = _plan(_SORTED, write_log, tiny_encoder)
    checkpoint = _resume_point(plan, 2)
    finished = replace(checkpoint, pass_index=0, day=DAYS[0], log_day=DAYS[0])
    changed = _plan(replace(_SORTED, days=[[[1]], [[2], [8, 1]]], seed=9), write_log, tiny_encoder)
    assert len(changed.segments([StreamStart(None, finished)], 2)) == 3


# --- What is received ---


def test_a_bad_unit_is_raised_where_it_is_read(write_log: WriteLog, tiny_encoder: Encoder):
    """A bad unit is skipped, or stops a rank before the units ahead of it are trained."""
    plan = _plan(replace(_SORTED, units=False, rows=False), write_log, tiny_encoder)
    plan.logs.write(f"dt={DAYS[0]}/part-1.parquet", b"")
    (blocks,) = _split(plan, 1)
    segment = next(read_segments(iter(blocks)))
    assert [parcel.unit for parcel in itertools.islice(segment.parcels, 5)] == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match=r"part-1\.parquet, row group 0, rows from 0: ") as caught:
        next(segment.parcels)
    assert isinstance(caught.value, DataError)
    assert "\n" not in str(caught.value)


def test_a_lane_that_does_not_begin_with_a_start(write_log: WriteLog, tiny_encoder: Encoder):
    """A splitter that has gone wrong by one block gives one day's units to another."""
    plan = _plan(_SORTED, write_log, tiny_encoder)
    (blocks,) = _split(plan, 1)
    with pytest.raises(AssertionError, match="a lane begins with the start of a segment"):
        next(read_segments(iter(blocks[1:])))
    assert list(read_segments(iter([]))) == []
