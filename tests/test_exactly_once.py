"""Exactly once, with the real trainer, real ranks and real files, whatever the log and wherever a run is cut off.

A run is cut off after a step of our choice, on some ranks, and goes on by the same command on others. What each start
has stepped is written down from the batches themselves; of a start that was cut off it counts up to the checkpoint
from which the next one went on.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from faults import Patch, after_step, count_what_was_read, replace_worker
from hypothesis import example, given, settings
from hypothesis import strategies as st
from local_training import on_processes
from records import write_position
from small_runs import weights
from small_streams import DAYS, SHAPES, SORTED, Shape

from features.encoding import Encoder
from models.ranker import StepOutput
from pipeline.cluster.failures import RunFailed
from pipeline.config.load import parse_config
from pipeline.config.project import Config
from pipeline.ingest.lanes import deal_log
from pipeline.ingest.units import list_days
from pipeline.lineage.audit import audit_line
from pipeline.lineage.line import Line
from pipeline.storage.files import Storage
from pipeline.trainer.train import Trainer, train_worker
from pipeline.trainer.train_line import train

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import this file


def _config(shape: Shape, logs: Storage, root: Path, encoder: Encoder, num_ranks: int) -> Config:
    network = {"kind": "hard_sharing", "layers": [4]}
    shuffle = {"units": shape.units, "rows": shape.rows, "interleave": shape.interleave}
    return parse_config(
        {
            "name": "exactly-once",
            "seed": shape.seed,
            "root": str(root),
            "logs": {"path": logs.url},
            "schema": encoder.schema.model_dump(mode="json", by_alias=True, exclude_defaults=True),
            "model": {"network": network, "towers": [4], "dropout": 0.1},
            "optimizer": {"tables": {"learning_rate": 0.1}, "dense": {"learning_rate": 0.01}},
            "ingest": {
                "batch_size": shape.batch_size,
                "unit": {"max_rows": shape.max_rows},
                "shuffle": shuffle,
                "lookahead": shape.lookahead,
            },
            "workers": {"num": num_ranks, "timeout_s": 60, "max_failures": 0},
            "checkpoint": {"every_steps": shape.every_steps, "keep": 1000, "background": False},
        },
        "test",
    )


def _worker(
    job: Any, lane: Any, folder: Path, start: int, stop: int | None, mistake: Callable[[Patch], None] | None
) -> dict[str, Any]:
    """`train_worker`, which writes down the rows of every step, and fails after a number of its own steps."""
    own, file = [0], folder / f"{start}-{ray.train.get_context().get_world_rank()}"

    def note(trainer: Trainer, output: StepOutput | None) -> None:
        rows = []
        if output is not None:
            batch = output.batch
            rows = batch.dense[: batch.cursor.num_rows, 0].int().tolist()
            assert batch.labels[: len(rows), 0].int().tolist() == [row % 2 for row in rows]
        with file.open("a") as noted:
            noted.write(json.dumps([trainer.step - (output is not None), rows]) + "\n")
        own[0] += output is not None
        if own[0] == stop:
            raise RuntimeError("cut off")

    after_step(setattr, note)
    if mistake is not None:
        mistake(setattr)
    return train_worker(job, lane)


@dataclass
class Runs:
    """Starts of one command, one after the other, on a root of their own."""

    shape: Shape
    logs: Storage
    folder: Path
    encoder: Encoder
    mistake: Callable[[Patch], None] | None = None
    num_starts: int = 0

    @property
    def days(self) -> list[str]:
        return DAYS[: len(self.shape.days)]

    def start(self, num_ranks: int, stop: int | None = None) -> Config:
        """Run the command to its end, or until it is cut off after a number of steps."""
        config = _config(self.shape, self.logs, self.folder / "root", self.encoder, num_ranks)
        with on_processes(), pytest.MonkeyPatch.context() as patch:
            noted = {"folder": self.folder, "start": self.num_starts}
            replace_worker(patch.setattr, _worker, **noted, stop=stop, mistake=self.mistake)
            self.num_starts += 1
            try:
                train(config, self.days, self.shape.passes)
            except RunFailed as error:
                if stop is None or "cut off" not in str(error):
                    raise
        return config

    def counted(self) -> Counter[int]:
        """Count how often each row was stepped on the way to the end: of a start, up to where the next began."""
        found: Counter[int] = Counter()
        until = float("inf")
        for start in reversed(range(self.num_starts)):
            steps = [json.loads(line) for file in self.folder.glob(f"{start}-*") for line in file.open()]
            for step, rows in steps:
                found.update(rows if step < until else [])
            until = min([until, *(step for step, _ in steps)])
        return found

    def tensors(self, config: Config) -> dict[str, torch.Tensor]:
        latest = Line.of(config.root, config.line).latest()
        assert latest is not None
        return weights(config, latest.checkpoint, self.folder)


@settings(max_examples=7)
@given(
    shape=SHAPES,
    stops=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 8)), max_size=3),
    num_ranks=st.integers(1, 3),
)
@example(shape=Shape([[[1]]], passes=2), stops=[(3, 1), (2, 1)], num_ranks=1)
@example(shape=replace(SORTED, passes=2), stops=[(2, 3), (3, 2)], num_ranks=2)
@example(shape=replace(SORTED, lookahead=3), stops=[(2, 3)], num_ranks=2)
def test_every_row_is_stepped_once_whatever_stops_it(
    shape: Shape,
    stops: list[tuple[int, int]],
    num_ranks: int,
    write_log: Callable[..., Storage],
    tiny_encoder: Encoder,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Catches rows that are lost, doubled or another unit's, at any boundary, and a cursor ahead of the model."""
    runs = Runs(shape, write_log(shape.days), tmp_path_factory.mktemp("runs"), tiny_encoder)
    for ranks, stop in stops:
        runs.start(ranks, stop)
    config = runs.start(num_ranks)
    assert runs.counted() == Counter(dict.fromkeys(range(shape.num_rows), shape.passes))
    assert audit_line(config, None)["rows"] == shape.passes * shape.num_rows


@settings(max_examples=5)
@given(shape=SHAPES, stops=st.lists(st.integers(1, 8), min_size=1, max_size=3), num_ranks=st.integers(1, 3))
@example(shape=replace(SORTED, every_steps=2), stops=[3, 2], num_ranks=2)
@example(shape=replace(SORTED, lookahead=3), stops=[2], num_ranks=2)
def test_a_resume_ends_with_the_same_bits(
    shape: Shape,
    stops: list[int],
    num_ranks: int,
    write_log: Callable[..., Storage],
    tiny_encoder: Encoder,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Catches other lanes, another order in a unit, other dice or another mix of open units after a restart; and
    batches that a thread has made ahead, with other rows or denominators than those that the trainer makes itself."""
    logs = write_log(shape.days)
    disturbed, undisturbed = (
        Runs(of, logs, tmp_path_factory.mktemp("runs"), tiny_encoder) for of in (shape, replace(shape, lookahead=1))
    )
    for stop in stops:
        disturbed.start(num_ranks, stop)
    found = disturbed.tensors(disturbed.start(num_ranks))
    expected = undisturbed.tensors(undisturbed.start(num_ranks))
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_reader_s_own_position_is_seen_to_fail(
    num_ranks: int, write_log: Callable[..., Storage], tiny_encoder: Encoder, tmp_path: Path
) -> None:
    """Negative control: a cursor of what was read, which runs ahead of the model, loses what was not yet stepped."""
    shape = replace(SORTED, days=SORTED.days[:1])
    once = Counter(dict.fromkeys(range(shape.num_rows), 1))
    for mistake in (None, count_what_was_read):
        folder = tmp_path / ("wrong" if mistake else "right")
        folder.mkdir()
        runs = Runs(shape, write_log(shape.days), folder, tiny_encoder, mistake)
        runs.start(num_ranks, 2)
        runs.start(num_ranks)
        lost = once - runs.counted()
        assert bool(lost) is bool(mistake)
        assert not runs.counted() - once


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_a_checkpoint_has_the_lanes_of_the_stream(
    num_ranks: int, write_log: Callable[..., Storage], tiny_encoder: Encoder, tmp_path: Path
) -> None:
    """Catches lanes that rank 0 deals again otherwise than the planner: the next resume then reads other batches."""
    runs = Runs(
        replace(SORTED, days=[[[9, 5], [7, 1], [8, 3, 9]]]),
        write_log([[[9, 5], [7, 1], [8, 3, 9]]]),
        tmp_path,
        tiny_encoder,
    )
    config = runs.start(2, 2)
    line = Line.of(config.root, config.line)
    first = line.newest()
    assert first is not None
    (log,) = list_days(runs.logs, DAYS[:1], runs.shape.max_rows)
    expected = deal_log(log, num_ranks, 0, config.ingest, config.seed, line.resume_point(first))
    runs.start(num_ranks, 2)
    second = line.newest()
    assert second is not None
    assert second.step > first.step
    assert line.lanes(second) == tuple(tuple(log.units[index].key for index in lane) for lane in expected.lanes)
    assert set(map(len, line.lanes(first))) != set(map(len, line.lanes(second)))  # the control: other lanes


def test_lanes_drawn_anew_are_seen_to_fail(
    write_log: Callable[..., Storage], tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Negative control: lanes that are dealt from what is missing lose no row, but the weights are others."""
    shape = replace(SORTED, days=[[[9, 5], [7, 1], [8, 3, 9]]])
    logs = write_log(shape.days)
    anew, undisturbed = (Runs(shape, logs, tmp_path_factory.mktemp("runs"), tiny_encoder) for _ in range(2))
    config = anew.start(2, 3)
    line = Line.of(config.root, config.line)
    newest = line.newest()
    assert newest is not None
    lanes = [*map(list, line.lanes(newest)), []]  # as if three ranks had written it
    write_position(line, newest.checkpoint, line.cursor(newest), lanes)
    found, expected = anew.tensors(anew.start(2)), undisturbed.tensors(undisturbed.start(2))
    assert anew.counted() == undisturbed.counted() == Counter(range(shape.num_rows))
    assert [name for name in expected if not torch.equal(expected[name], found[name])]


@pytest.mark.parametrize(("num_ranks", "lookahead"), [(1, 1), (2, 1), (2, 3)])
def test_a_bad_unit_at_the_end_of_a_lane(
    num_ranks: int, lookahead: int, write_log: Callable[..., Storage], tiny_encoder: Encoder, tmp_path: Path
) -> None:
    """Catches a unit that is met after the last row of its rank, in a batch that is never stepped, and is lost."""
    shape = Shape(
        [[[3], [3], [2]]], units=False, rows=False, lookahead=lookahead
    )  # one batch is the first unit, and the third is bad
    logs = write_log(shape.days)
    bad = Path(logs.path(f"dt={DAYS[0]}/part-2.parquet"))
    table = pq.read_table(bad)
    pq.write_table(table.set_column(3, "click", pa.array([2, 2], pa.int8())), bad)
    config = _config(shape, logs, tmp_path / "root", tiny_encoder, num_ranks)
    ingest = config.ingest.model_copy(update={"on_bad_unit": "quarantine", "max_quarantined": 0.5})
    with on_processes():
        result = train(config.model_copy(update={"ingest": ingest}), DAYS[:1], passes=1)
    assert (result["rows"], result["quarantined"].keys()) == (6, {f"dt={DAYS[0]}/part-2.parquet#0[0:2]"})
