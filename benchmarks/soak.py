"""Memory of all processes over many rows, through ingest and step, and through ingest alone; every row once.

The rows are made piece by piece while the benchmark runs, and removed after their piece. BENCH_SOAK_ROWS sets the
number of rows, a multiple of 1,048,576. BENCH_SOAK_FOLDER names a folder in which a stopped run goes on.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.ingest_cpu import Consumer, read_by
from benchmarks.processes import Memory, TreeWatcher
from benchmarks.workload import WORKERS, load, write_config
from features.synthetic.logs import SyntheticConfig, make_part
from features.whole_days import write_whole_day
from pipeline.cluster.session import ray_session
from pipeline.config.load import load_config
from pipeline.config.project import Config
from pipeline.ingest.cursor import check_audit, expected_sums
from pipeline.trainer.train_line import train

_ROWS, _QUICK_ROWS, _PIECE_ROWS, _QUICK_PIECE_ROWS = 2**23, 2**17, 2**20, 2**15
_GROUP_ROWS, _FILES, _IDS = 2**16, 4, 20_000
_FIRST = date(2026, 11, 5)
_GOAL = 1.1
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory of all processes at the end of a piece.

    Args:
        rows: Rows so far.
        peak_mib: Largest memory within the piece, object store apart.
        end_mib: Memory at its end.
    """

    rows: int
    peak_mib: int
    end_mib: int


@dataclass(frozen=True, slots=True)
class Soak:
    """A soak of one kind.

    Args:
        folder: Folder of its project, its samples and its newest piece.
        base: Rows that every piece repeats with other users.
        piece_rows: Rows of a piece.
    """

    folder: Path
    base: pa.Table
    piece_rows: int

    def samples(self) -> list[Sample]:
        """Return the samples of the pieces that are done."""
        file = self.folder / "samples.json"
        return [Sample(**one) for one in json.loads(file.read_text())] if file.exists() else []

    def go_on(self, pieces: int, work: Callable[[str], int], watcher: TreeWatcher) -> list[Sample]:
        """Do the missing pieces; return the samples of all.

        Args:
            pieces: Number of pieces.
            work: Reads or trains a day; returns its rows, each of them audited.
            watcher: Watcher of all processes, with their memory.
        """
        samples = self.samples()
        for number in range(len(samples), pieces):
            day = _FIRST + timedelta(number)
            write_whole_day(self._parts(number), day, self.folder / "logs", _GROUP_ROWS)
            watcher.peak = Memory(0, 0)
            rows = work(day.isoformat())
            if rows != self.piece_rows:
                raise RuntimeError(f"{rows:,} rows of piece {number}, expected {self.piece_rows:,}")
            done = (number + 1) * self.piece_rows
            end = watcher.now().private
            samples.append(Sample(done, max(watcher.peak.private, end) // _MIB, end // _MIB))
            shutil.rmtree(self.folder / "logs" / f"dt={day}")
            (self.folder / "samples.json").write_text(json.dumps([asdict(sample) for sample in samples]))
        return samples

    def _parts(self, number: int) -> Iterator[pa.Table]:
        users = self.base["user_id"].to_numpy()
        column = self.base.schema.get_field_index("user_id")
        repeats = self.piece_rows // _FILES // len(self.base)
        for part in range(_FILES):
            shifts = number * _FILES * repeats + part * repeats + np.arange(repeats)
            moved = (self.base.set_column(column, "user_id", [(users + 7919 * shift) % _IDS]) for shift in shifts)
            yield pa.concat_tables(moved)


def run(quick: bool) -> dict[str, Any]:
    """Soak the stream alone, then stream and step.

    Args:
        quick: 131,072 rows in pieces of 32,768, unless BENCH_SOAK_ROWS says otherwise; else 8,388,608 in pieces of
            1,048,576.
    """
    piece_rows = _QUICK_PIECE_ROWS if quick else _PIECE_ROWS
    rows = int(os.environ.get("BENCH_SOAK_ROWS", _QUICK_ROWS if quick else _ROWS))
    with TemporaryDirectory(prefix="counterpoise-bench-") as temporary:
        place = Path(os.environ.get("BENCH_SOAK_FOLDER", temporary))
        found = {kind: _soak(place / kind, kind, rows // piece_rows, piece_rows) for kind in ("ingest", "step")}
    return {"rows": rows, "piece_rows": piece_rows, "workers": WORKERS, "goal": _GOAL, "head": "one layer"} | found


def _soak(folder: Path, kind: str, pieces: int, piece_rows: int) -> dict[str, Any]:
    world = SyntheticConfig(
        seed=7,
        first_day=_FIRST - timedelta(4),  # most users have a full history by now
        rows_per_day=min(piece_rows // _FILES, _GROUP_ROWS),
        num_users=_IDS,
        num_videos=_IDS,
        num_authors=_IDS // 10,
    )
    base = make_part(world, _FIRST, 0)
    if not (folder / "config.yaml").exists():
        (folder / "logs").mkdir(parents=True)
        write_config(str(folder), base, checkpoint={"keep_days": 2}, ingest={"object_store_mb": 64})
    config = load_config(folder / "config.yaml")
    with ray_session(config), TreeWatcher(os.getpid(), memory=True, every_s=0.5) as watcher:
        work = _reader(folder) if kind == "ingest" else _trainer(config)
        samples = Soak(folder, base, piece_rows).go_on(pieces, work, watcher)
    return _figures(samples)


def _trainer(config: Config) -> Callable[[str], int]:
    """Return the training of a day: it refuses a day of which it has not stepped every row once."""
    return lambda day: train(config, [day], 1)["rows"]


def _reader(folder: Path) -> Callable[[str], int]:
    """Return the reading of a day to batches, with the audit that a training makes."""
    consumers = [Consumer.remote() for _ in range(WORKERS)]

    def read(day: str) -> int:
        config, encoder, log = load(folder, day)
        cursor = read_by(config, encoder, log, 1, consumers)
        check_audit(cursor, log, expected_sums(log.units))
        return cursor.num_rows

    return read


def _figures(samples: list[Sample]) -> dict[str, Any]:
    """Return the slope of the memory, the first piece left out, in which the processes start."""
    settled = samples[1:] if len(samples) > 2 else samples
    millions = [sample.rows / 1e6 for sample in settled]
    slopes = {
        name: float(np.polyfit(millions, [getattr(sample, name) for sample in settled], 1)[0])
        for name in ("peak_mib", "end_mib")
    }
    return {
        "pieces_with_every_row_once": len(samples),
        "peak_mib": {"second": settled[0].peak_mib, "last": settled[-1].peak_mib},
        "peak_mib_per_million_rows": round(slopes["peak_mib"], 2),
        "end_mib_per_million_rows": round(slopes["end_mib"], 2),
        "last_over_second_peak": round(settled[-1].peak_mib / settled[0].peak_mib, 3),
    }
