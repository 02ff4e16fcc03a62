"""The stream, from files to batches, with a least-rows splitter in the place of Ray's: exactly once, whatever stops it.

There is no model here. A step is the next batch of every rank; a checkpoint is what the stepped batches' cursors say.
"""

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from features.encoding import Encoder
from features.errors import DataError
from models.batch import RankingBatch
from pipeline.config.ingest import IngestConfig, ShuffleConfig, UnitConfig
from pipeline.ingest.batcher import Batcher
from pipeline.ingest.cursor import DayCursor, StoredCursor, audit, union
from pipeline.ingest.datasource import PlannedParcel, group_entries, read_parcels
from pipeline.ingest.parts import whole_days
from pipeline.ingest.plan import Header, ResumePoint, RunPlan, StreamStart
from pipeline.ingest.receive import read_segments
from pipeline.ingest.units import DayLog, list_days
from pipeline.storage.files import Storage

DAYS = ["2026-03-01", "2026-03-02"]
WriteLog = Callable[..., Storage]
_READ_AHEAD = 2


@dataclass(frozen=True)
class _Shape:
    """A small log and how it is read."""

    days: list[list[list[int]]]
    max_rows: int = 4
    batch_size: int = 3
    interleave: int = 1
    units: bool = True
    rows: bool = True
    passes: int = 2
    seed: int = 1

    def plan(self, write_log: WriteLog, encoder: Encoder) -> RunPlan:
        logs = write_log(self.days)
        shuffle = ShuffleConfig(units=self.units, rows=self.rows, interleave=self.interleave)
        ingest = IngestConfig(batch_size=self.batch_size, unit=UnitConfig(max_rows=self.max_rows), shuffle=shuffle)
        parts = whole_days(list_days(logs, DAYS[: len(self.days)], self.max_rows))
        return RunPlan(logs, parts, self.passes, encoder, ingest, self.seed, starts=(StreamStart,))


_SHAPES = st.builds(
    _Shape,
    # Two days of files of row groups; every day has a row.
    days=st.lists(
        st.lists(st.lists(st.integers(1, 9), max_size=3), min_size=1, max_size=3).filter(any), min_size=1, max_size=2
    ),
    max_rows=st.integers(2, 10),
    batch_size=st.integers(1, 7),
    interleave=st.integers(1, 4),
    units=st.booleans(),
    rows=st.booleans(),
    passes=st.integers(1, 2),
    seed=st.integers(0, 9),
)
_RANKS = st.integers(1, 5)
_ONE_ROW = _Shape([[[1]]])
_ONE_BATCH = _Shape([[[6]], [[6]]], max_rows=3, batch_size=3)
_SORTED = _Shape([[[9, 5], [7]], [[2], [8, 1]]], interleave=3, batch_size=4)


@dataclass
class _Run:
    """What an attempt has stepped.

    Args:
        steps: By segment (pass, day): the batches of all ranks, step after step.
        checkpoint: Where a checkpoint would stand that is written now.
        problems: What the audits of the finished days say.
    """

    steps: dict[tuple[int, str], list[list[RankingBatch]]] = field(default_factory=dict)
    checkpoint: ResumePoint | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def num_steps(self) -> int:
        return sum(map(len, self.steps.values()))


def _split(plan: RunPlan, num_ranks: int) -> list[list[pa.Table]]:
    """The blocks of each rank. Least rows, ties by rank: of blocks of one row each, that is round and round."""
    segments = plan.segments(plan.begin_attempts(), num_ranks)
    read_plan = plan.read_plan(segments)
    tasks = group_entries(read_plan, plan.entries(segments, num_ranks))
    blank = plan.encoder.empty()
    blocks = [parcel.to_block(blank) for task in tasks for parcel in read_parcels(read_plan, task)]
    return [blocks[rank::num_ranks] for rank in range(num_ranks)]


def _train(
    plan: RunPlan, num_ranks: int, start: ResumePoint | None = None, *, max_steps: int = 10**9, of: str = "stepped"
) -> _Run:
    """Go on from a checkpoint until the end, or until a number of steps.

    Args:
        plan: What to read.
        num_ranks: Ranks.
        start: Where to go on.
        max_steps: Steps to make, at most.
        of: Which batches move the cursor: those `stepped`, or, as a negative control, those `read`.
    """
    plan = replace(plan, starts=(lambda: StreamStart(None, start),))
    run, shape = _Run(checkpoint=start), plan.ingest
    ranks = [read_segments(iter(blocks)) for blocks in _split(plan, num_ranks)]
    for segments in zip(*ranks, strict=True):
        header = segments[0].header
        assert all(segment.header == header for segment in segments)
        (day,) = [day for day in _logs(plan) if day.day == header.day]
        batchers = [
            Batcher(plan.encoder.schema, day.units, segment.parcels, shape.batch_size, shape.shuffle.interleave)
            for segment in segments
        ]
        before, counted = DayCursor.from_stored(header.seen, day.units), DayCursor()
        steps = run.steps.setdefault((header.pass_index, header.day), [])
        for batches, read in _read_ahead(batchers, run.num_steps):
            if run.num_steps == max_steps:
                return run
            steps.append(batches)
            for batch in batches if of == "stepped" else read:
                counted.advance(batch.cursor)
            run.checkpoint = _checkpoint(plan, header, day, union([before, counted]), complete=False)
        cursor = union([before, counted])
        run.problems += audit(cursor, day.units)
        run.checkpoint = _checkpoint(plan, header, day, cursor, complete=True)
    return run


def _read_ahead(batchers: list[Batcher], step: int) -> Iterator[tuple[list[RankingBatch], list[RankingBatch]]]:
    """The batches of all ranks, step after step until all are dry, and those that were read since the last step."""
    ahead: deque[list[RankingBatch]] = deque()
    read: list[RankingBatch] = []
    for number in itertools.count(step):
        ahead.append([batcher.next_batch(number) for batcher in batchers])
        read += ahead[-1]
        if len(ahead) <= _READ_AHEAD:
            continue
        batches = ahead.popleft()
        if not any(batch.cursor.num_rows for batch in batches):
            return
        yield batches, read
        read = []


def _checkpoint(plan: RunPlan, header: Header, day: DayLog, cursor: DayCursor, *, complete: bool) -> ResumePoint:
    return ResumePoint(
        checkpoint="checkpoints/somewhere",
        pass_index=header.pass_index,
        day=day.day,
        log_day=day.day,
        seen=StoredCursor.from_arrow(cursor.to_stored(day.units).to_arrow()),
        lanes=[[day.units[index].key for index in lane] for lane in header.lanes],
        complete=complete,
        seed=plan.seed,
        shuffle_rows=plan.ingest.shuffle.rows,
        files=day.files,
    )


def _logs(plan: RunPlan) -> list[DayLog]:
    return [part.log for part in plan.parts]


def _first_numbers(plan: RunPlan) -> dict[tuple[str, int, int], int]:
    """By file, row group and first row of a unit: the number that its first row has in the whole log."""
    first, result = 0, {}
    for unit in itertools.chain(*(day.units for day in _logs(plan))):
        result[unit.file, unit.row_group, unit.first_row] = first
        first += unit.num_rows
    return result


def _rows(plan: RunPlan, run: _Run) -> dict[tuple[int, str], Counter[int]]:
    """By segment, the numbers of the rows that were stepped; what a batch holds is what its cursor says."""
    first = _first_numbers(plan)
    found = {}
    for segment, steps in run.steps.items():
        (day,) = [day for day in _logs(plan) if day.day == segment[1]]
        found[segment] = Counter()
        for batch in itertools.chain(*steps):
            said = []
            for span in batch.cursor.spans:
                unit = day.units[span.unit]
                said += [first[unit.file, unit.row_group, unit.first_row] + int(row) for row in span.rows]
            held = batch.dense[: len(said), 0].int().tolist()
            assert held == said
            assert batch.labels[: len(said), 0].int().tolist() == [number % 2 for number in said]
            found[segment].update(said)
    return found


def _once(plan: RunPlan) -> dict[tuple[int, str], Counter[int]]:
    """By segment, every row of its day, once."""
    ends = list(itertools.accumulate((day.num_rows for day in _logs(plan)), initial=0))
    return {
        (pass_index, day.day): Counter(range(ends[index], ends[index + 1]))
        for pass_index in range(plan.passes)
        for index, day in enumerate(_logs(plan))
    }


def _together(parts: list[dict[tuple[int, str], Counter[int]]]) -> dict[tuple[int, str], Counter[int]]:
    joined: dict[tuple[int, str], Counter[int]] = {}
    for segment, rows in itertools.chain(*(part.items() for part in parts)):
        joined[segment] = joined.get(segment, Counter()) + rows
    return joined


def _bits(batch: RankingBatch) -> list[Any]:
    """All of a batch, to be compared."""
    tensors = [batch.sparse.values(), batch.sparse.lengths(), batch.dense, batch.labels, batch.in_space]
    tensors += [batch.weight, batch.slot]
    spans = [(span.unit, span.salt, span.rows.tolist()) for span in batch.cursor.spans]
    return [tensor.numpy().tobytes() for tensor in tensors] + [spans, batch.cursor.in_space.tolist()]


def _flat(runs: list[_Run]) -> list[tuple[tuple[int, str], list[list[Any]]]]:
    return [
        (segment, [_bits(batch) for batch in batches])
        for run in runs
        for segment, steps in run.steps.items()
        for batches in steps
    ]


# --- Exactly once ---


@settings(max_examples=50)
@given(shape=_SHAPES, num_ranks=_RANKS)
@example(shape=_ONE_ROW, num_ranks=3)
@example(shape=_ONE_BATCH, num_ranks=2)
@example(shape=_SORTED, num_ranks=2)
def test_every_row_is_in_one_batch(shape: _Shape, num_ranks: int, write_log: WriteLog, tiny_encoder: Encoder):
    """A row is lost or doubled between files, ranges, lanes, turns and batches; or it is another unit's row."""
    plan = shape.plan(write_log, tiny_encoder)
    run = _train(plan, num_ranks)
    assert _rows(plan, run) == _once(plan)
    assert run.problems == []
    assert run.checkpoint is not None
    assert run.checkpoint.complete
    assert _train(plan, num_ranks, run.checkpoint).num_steps == 0
    for steps in run.steps.values():
        counts = [sum(batch.cursor.num_rows for batch in rank) for rank in zip(*steps, strict=True)]
        assert max(counts) - min(counts) <= shape.max_rows
        assert all(len(batch.slot) == shape.batch_size for batch in itertools.chain(*steps))


def test_dropped_and_doubled_blocks_are_seen_to_fail(write_log: WriteLog, tiny_encoder: Encoder):
    """Negative control: what `equal=True` would drop, or a task that ran twice would bring, is in the audit."""
    plan = replace(_SORTED, days=_SORTED.days[:1], passes=1).plan(write_log, tiny_encoder)
    (day,), (blocks,) = _logs(plan), _split(plan, 1)
    for lane, expected in ((blocks, 0), (blocks[:3] + blocks[4:], 1), (blocks[:4] + blocks[3:], 1)):
        segment = next(read_segments(iter(lane)))
        cursor = DayCursor()
        cursor.advance(Batcher(tiny_encoder.schema, day.units, segment.parcels, 100, 1).next_batch(0).cursor)
        assert len(audit(cursor, day.units)) == expected


@settings(max_examples=20)
@given(shape=_SHAPES, num_ranks=_RANKS)
def test_the_stream_is_a_function_of_its_plan(
    shape: _Shape, num_ranks: int, write_log: WriteLog, tiny_encoder: Encoder
):
    """Two runs with one seed differ, or the passes of a shuffled run are alike."""
    plan = shape.plan(write_log, tiny_encoder)
    run = _train(plan, num_ranks)
    assert _flat([run]) == _flat([_train(plan, num_ranks)])
    longest = max((unit.num_rows for day in _logs(plan) for unit in day.units), default=0)
    if shape.rows and shape.passes == 2 and longest > 4:  # negative control
        assert [bits for (_, bits) in _flat([_train(replace(plan, seed=77), num_ranks)])] != [
            bits for (_, bits) in _flat([run])
        ]


# --- Resume ---


@settings(max_examples=50)
@given(shape=_SHAPES, num_ranks=_RANKS, stops=st.lists(st.integers(0, 12), min_size=1, max_size=3))
@example(shape=_ONE_ROW, num_ranks=2, stops=[1, 0, 1])
@example(shape=_ONE_BATCH, num_ranks=2, stops=[1, 1])
@example(shape=_SORTED, num_ranks=2, stops=[3, 2])
def test_a_resume_goes_on_with_the_same_batches(
    shape: _Shape, num_ranks: int, stops: list[int], write_log: WriteLog, tiny_encoder: Encoder
):
    """After a stop, or two, the mix of open units, the order in a unit or the lanes are others than without it."""
    plan = shape.plan(write_log, tiny_encoder)
    undisturbed = _train(plan, num_ranks)
    runs, checkpoint = [], None
    for stop in [*stops, 10**9]:
        runs.append(_train(plan, num_ranks, checkpoint, max_steps=stop))
        checkpoint = runs[-1].checkpoint
    assert _flat(runs) == _flat([undisturbed])
    assert runs[-1].problems == []
    assert checkpoint is not None
    assert undisturbed.checkpoint is not None
    assert checkpoint.seen == undisturbed.checkpoint.seen


@settings(max_examples=50)
@given(shape=_SHAPES, stops=st.lists(st.tuples(_RANKS, st.integers(0, 12)), min_size=1, max_size=3), num_ranks=_RANKS)
@example(shape=_ONE_ROW, stops=[(3, 0), (2, 1)], num_ranks=1)
@example(shape=_SORTED, stops=[(2, 3), (3, 2)], num_ranks=2)
def test_a_resume_on_other_ranks_trains_what_is_missing(
    shape: _Shape, stops: list[tuple[int, int]], num_ranks: int, write_log: WriteLog, tiny_encoder: Encoder
):
    """Rows that one rank had read of a unit are read again by another, or are lost with it."""
    plan = shape.plan(write_log, tiny_encoder)
    parts, checkpoint, problems = [], None, []
    for ranks, stop in [*stops, (num_ranks, 10**9)]:
        run = _train(plan, ranks, checkpoint, max_steps=stop)
        parts.append(_rows(plan, run))
        checkpoint = run.checkpoint
        problems += run.problems
    assert _together(parts) == _once(plan)
    assert problems == []


@settings(max_examples=20)
@given(shape=_SHAPES, num_ranks=_RANKS, stop=st.integers(1, 4))
def test_the_reader_s_own_position_is_seen_to_fail(
    shape: _Shape, num_ranks: int, stop: int, write_log: WriteLog, tiny_encoder: Encoder
):
    """Negative control: a cursor of what was read, which runs ahead of the model, loses what was not yet stepped."""
    shape = replace(shape, passes=1, days=shape.days[:1])
    plan = shape.plan(write_log, tiny_encoder)
    assume(_train(plan, num_ranks).num_steps > stop + _READ_AHEAD)
    for of, expected in (("stepped", True), ("read", False)):
        first = _train(plan, num_ranks, max_steps=stop, of=of)
        second = _train(plan, num_ranks, first.checkpoint)
        assert (_together([_rows(plan, first), _rows(plan, second)]) == _once(plan)) is expected


def test_lanes_drawn_anew_are_seen_to_fail(write_log: WriteLog, tiny_encoder: Encoder):
    """Negative control: lanes that are dealt from what is missing lose no row, but the batches are others."""
    plan = replace(_SORTED, days=[[[9, 5], [7, 1], [8, 3, 9]]]).plan(write_log, tiny_encoder)
    first = _train(plan, 2, max_steps=2)
    assert first.checkpoint is not None
    (part, header) = plan.segments([StreamStart(None, first.checkpoint)], 3)[0]
    keys = [[part.log.units[index].key for index in lane] for lane in header.lanes]
    anew = replace(first.checkpoint, lanes=[*keys, []])  # as if it had been written by four ranks
    again = _train(plan, 2, anew)
    assert _together([_rows(plan, first), _rows(plan, again)]) == _once(plan)
    assert _flat([first, again]) != _flat([_train(plan, 2)])


# --- What is planned ---


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_a_resume_reads_only_what_is_missing(num_ranks: int, write_log: WriteLog, tiny_encoder: Encoder):
    """A restart late in the day decodes all of it again, and throws it away."""
    plan = replace(_SORTED, passes=1, interleave=1).plan(write_log, tiny_encoder)
    (day, _) = _logs(plan)
    checkpoint = _train(plan, 2, max_steps=2).checkpoint
    assert checkpoint is not None
    seen = {key: count for key, (count, _) in checkpoint.seen.units.items()}
    resumed = replace(plan, starts=(lambda: StreamStart(None, checkpoint),))
    entries = resumed.entries(resumed.segments(resumed.begin_attempts(), num_ranks), num_ranks)
    read = {day.units[entry.unit].key: entry.skip for entry in entries if entry.kind == "unit" and entry.segment == 0}
    left = {unit.key: seen.get(unit.key, 0) for unit in day.units if seen.get(unit.key, 0) < unit.num_rows}
    assert read == left
    assert 0 < len(read) < len(day.units)
    assert max(read.values()) > 0


def test_a_checkpoint_travels_in_the_first_segment_only(write_log: WriteLog, tiny_encoder: Encoder):
    """Weights are restored again at midnight, or not at all; an earlier day's checkpoint skips days."""
    plan = _SORTED.plan(write_log, tiny_encoder)
    earlier = _train(plan, 2).checkpoint
    assert earlier is not None
    for point, left in [
        (None, [(0, DAYS[0]), (0, DAYS[1]), (1, DAYS[0]), (1, DAYS[1])]),
        (replace(earlier, day="2026-02-28"), [(0, DAYS[0]), (0, DAYS[1]), (1, DAYS[0]), (1, DAYS[1])]),
        (replace(earlier, pass_index=0, day=DAYS[0], log_day=DAYS[0]), [(0, DAYS[1]), (1, DAYS[0]), (1, DAYS[1])]),
        (replace(earlier, pass_index=0, day=DAYS[1]), [(1, DAYS[0]), (1, DAYS[1])]),
        (replace(earlier, pass_index=1, day=DAYS[1]), []),
    ]:
        segments = plan.segments([StreamStart(None, point)], 2)
        assert [(header.pass_index, header.day) for _, header in segments] == left
        assert [day.day for day, _ in segments] == [day for _, day in left]
        name = point.checkpoint if point else None
        assert [header.checkpoint for _, header in segments] == [name, None, None, None][: len(left)]


def test_models_come_one_after_the_other(write_log: WriteLog, tiny_encoder: Encoder):
    """Catches rows of one model that are trained by another, and a checkpoint that a second model starts from."""
    plan = replace(_SORTED.plan(write_log, tiny_encoder), passes=1)
    within, end = _train(plan, 2, max_steps=1).checkpoint, _train(plan, 2).checkpoint
    starts = [StreamStart("0007", end), StreamStart("0002", within), StreamStart("0001")]
    segments = plan.segments(starts, 2)
    found = [(header.model, header.day, header.attempt, header.checkpoint) for _, header in segments]
    assert within is not None
    assert found == [
        (1, DAYS[0], "0002", within.checkpoint),
        (1, DAYS[1], "0002", None),
        (2, DAYS[0], "0001", None),
        (2, DAYS[1], "0001", None),
    ]
    assert [bool(header.seen.units) for _, header in segments] == [True, False, False, False]


@settings(max_examples=20)
@given(shape=_SHAPES, num_ranks=_RANKS)
def test_entries_come_in_turns(shape: _Shape, num_ranks: int, write_log: WriteLog, tiny_encoder: Encoder):
    """One blank too few, and every unit after it goes to the next rank."""
    plan = shape.plan(write_log, tiny_encoder)
    segments = plan.segments(plan.begin_attempts(), num_ranks)
    entries = plan.entries(segments, num_ranks)
    assert len(entries) % num_ranks == 0
    for rank in range(num_ranks):
        own = entries[rank::num_ranks]
        assert [entry.segment for entry in own if entry.kind == "start"] == list(range(len(segments)))
        for segment, (_, header) in enumerate(segments):
            assert own[0] == PlannedParcel("start", 0, text=own[0].text)
            units = [entry.unit for entry in own if entry.kind == "unit" and entry.segment == segment]
            assert units == header.lanes[rank]
            text = next(entry.text for entry in own if entry.kind == "start" and entry.segment == segment)
            assert Header.from_json(text).to_json() == header.to_json() == text


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
    plan = shape.plan(write_log, tiny_encoder)
    checkpoint = _train(plan, 2, max_steps=1).checkpoint
    assert checkpoint is not None
    plan.segments([StreamStart(None, checkpoint)], num_ranks)  # negative control
    changed = replace(shape, days=days or shape.days, **changes).plan(write_log, tiny_encoder)
    with pytest.raises(DataError, match=rf"^checkpoints/somewhere is within 2026-03-01, .*{message}") as caught:
        changed.segments([StreamStart(None, checkpoint)], num_ranks)
    assert "\n" not in str(caught.value)


def test_a_file_that_was_written_again_is_not_resumed(write_log: WriteLog, tiny_encoder: Encoder):
    """A file with as many rows but other ones goes on where the old one was, and no count shows it."""
    plan = replace(_SORTED, days=[[[9, 5], [7]]]).plan(write_log, tiny_encoder)
    checkpoint = _train(plan, 2, max_steps=1).checkpoint
    assert checkpoint is not None
    file = f"dt={DAYS[0]}/part-1.parquet"
    mark = checkpoint.files[file]
    changed = replace(checkpoint, files={**checkpoint.files, file: "another"})
    message = rf"has changed since \({file} was another \(bytes and fingerprint\) and is {mark}\): restore them"
    with pytest.raises(DataError, match=message):
        plan.segments([StreamStart(None, changed)], 2)


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_a_day_with_a_quarantined_unit_is_resumed_again(num_ranks: int, write_log: WriteLog, tiny_encoder: Encoder):
    """A second resume within the day misses the unit, which is in no lane any more, and says that the log changed."""
    plan = replace(_SORTED, days=[[[9, 5], [7]]]).plan(write_log, tiny_encoder)
    checkpoint = _train(plan, 2, max_steps=1).checkpoint
    assert checkpoint is not None
    (key, *_) = [unit.key for unit in _logs(plan)[0].units if unit.key not in checkpoint.seen.units]
    bad = replace(checkpoint, seen=replace(checkpoint.seen, quarantined={key: "a reason"}))
    for _ in range(2):
        _, header = plan.segments([StreamStart(None, bad)], num_ranks)[0]
        lanes = [[_logs(plan)[0].units[index].key for index in lane] for lane in header.lanes]
        assert key not in [unit for lane in lanes for unit in lane]
        bad = replace(bad, lanes=lanes)


def test_a_finished_day_may_change(write_log: WriteLog, tiny_encoder: Encoder):
    """A seed for the next days, or a log that is archived meanwhile, stops a line."""
    plan = _SORTED.plan(write_log, tiny_encoder)
    checkpoint = _train(plan, 2).checkpoint
    assert checkpoint is not None
    finished = replace(checkpoint, pass_index=0, day=DAYS[0], log_day=DAYS[0])
    changed = replace(_SORTED, days=[[[1]], [[2], [8, 1]]], seed=9).plan(write_log, tiny_encoder)
    assert len(changed.segments([StreamStart(None, finished)], 2)) == 3


# --- What is received ---


def test_a_bad_unit_is_raised_where_it_is_read(write_log: WriteLog, tiny_encoder: Encoder):
    """A bad unit is skipped, or stops a rank before the units ahead of it are trained."""
    plan = replace(_SORTED, units=False, rows=False).plan(write_log, tiny_encoder)
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
    plan = _SORTED.plan(write_log, tiny_encoder)
    (blocks,) = _split(plan, 1)
    with pytest.raises(AssertionError, match="a lane begins with the start of a segment"):
        next(read_segments(iter(blocks[1:])))
    assert list(read_segments(iter([]))) == []
