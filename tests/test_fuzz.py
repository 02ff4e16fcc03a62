"""Hundreds of seeded bad inputs: each ends in one clear line, or is read exactly as if it were not bad.

Logs are read in a process of their own: a crash, a hang or a giant allocation is a defect too.
"""

import copy
import logging
import math
import multiprocessing
import os
import random
import resource
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from records import manifest_of, write_manifest, write_position
from small_units import unit_entries

from features.encoding import Encoder
from features.errors import DataError
from jobs.command import BAD_ARGUMENTS, DONE, outcome
from pipeline.config.ingest import IngestConfig
from pipeline.config.load import load_config
from pipeline.ingest.cursor import StoredCursor
from pipeline.ingest.datasource import ReadPlan, read_parcels
from pipeline.ingest.parts import whole_days
from pipeline.ingest.plan import RunPlan, StreamStart
from pipeline.ingest.units import DayLog, check_days
from pipeline.lineage.line import Line
from pipeline.storage.files import Storage

DAY = "2026-03-01"
_DEMO = Path(__file__).parent.parent / "jobs/configs/demo.yaml"
_MEMORY_BYTES = 16 << 30


# --- Configurations ---

_EXTREMES: list[Any] = [0, -1, 1, 2**31, -(2**63), 0.5, 1e308, math.inf, -math.inf, math.nan, -0.0, 1e-320]
_EXTREMES += ["", " ", "x" * 999, "a\nb", "\x00", "é", "true", "16", "../..", True, False, None]
_EXTREMES += [10**30, 2**63, [10**30], [], {}, [None], [[]], {"kind": "ple"}, [1] * 99, ["a"], [-1]]


def _places(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from _places(value, (*at, key))


def _at(node: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        node = node[key]
    return node


def _mutate(config: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """A config with one thing deleted, renamed, replaced by an extreme, or put where another belongs."""
    config, places = copy.deepcopy(config), list(_places(config))
    place = draw.choice(places)
    parent, key = _at(config, place[:-1]), place[-1]
    match draw.choice(["delete", "rename", "extreme", "extreme", "extreme", "swap"]):
        case "delete":
            del parent[key]
        case "rename" if isinstance(parent, dict):
            parent[draw.choice([f"{key}x", str(key)[1:], str(key).upper(), 3, None, True])] = parent.pop(key)
        case "swap":
            parent[key] = copy.deepcopy(_at(config, draw.choice(places)))
        case _:
            parent[key] = draw.choice(_EXTREMES)
    return config


def _misread(given: Any, read: Any) -> bool:
    """Return True if a file's value was read as another one; the defaults that it leaves out do not count."""
    if isinstance(given, dict):
        return not isinstance(read, dict) or any(_misread(value, read[key]) for key, value in given.items())
    if isinstance(given, list):
        return len(given) != len(read) or any(map(_misread, given, read))
    whole_number = isinstance(given, int) and isinstance(read, float) and not isinstance(given, bool)
    return given != read or not (whole_number or type(given) is type(read))


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_mutated_configs(tmp_path: Path, first: int) -> None:
    """Catches a config that ends in a traceback, or is read as another: `true` as 1, a string as a number."""
    demo = yaml.safe_load(_DEMO.read_text())
    codes = []
    for seed in range(first, first + 50):
        path, read = tmp_path / "config.yaml", []
        path.write_text(yaml.safe_dump(_mutate(demo, random.Random(seed)), allow_unicode=True))
        result, code = outcome(lambda _, path=path, read=read: read.append(load_config(path)) or {}, Any)
        codes.append(code)
        assert code in (DONE, BAD_ARGUMENTS), (seed, result)
        if code == DONE:
            assert not _misread(yaml.safe_load(path.read_text()), read[0].model_dump(by_alias=True)), seed
        else:
            assert "\n" not in result["error"], seed
            assert "config.yaml" in result["error"] or len(result["error"]) > 20, seed
    assert 0 < codes.count(DONE) < codes.count(BAD_ARGUMENTS)


def test_bytes_that_are_no_config(tmp_path: Path) -> None:
    """Catches a YAML file whose damage is a traceback."""
    text, path = _DEMO.read_bytes(), tmp_path / "config.yaml"
    for seed in range(40):
        draw = random.Random(seed)
        bad = bytearray(text)
        for _ in range(draw.randrange(1, 9)):
            bad[draw.randrange(len(bad))] = draw.randrange(256)
        path.write_bytes(bad if seed % 2 else bad[: draw.randrange(len(bad))])
        result, code = outcome(lambda _: load_config(path) and {}, Any)
        assert code in (DONE, BAD_ARGUMENTS), (seed, result)
        assert "\n" not in result.get("error", ""), seed


# --- Logs ---


class Reader:
    """A process of its own that does what it is asked to, so that its death can be seen."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, job: Callable[[], Any], timeout_s: float = 60) -> Any:
        """Return the job's result, or the DataError that it raised."""
        try:
            self._pipe.send(job)
            assert self._pipe.poll(timeout_s), f"{job} hangs"
            result, problem = self._pipe.recv()
        except (EOFError, BrokenPipeError):
            self._process.join(60)
            pytest.fail(f"{job} has ended its process with {self._process.exitcode}")
        assert not problem, problem
        return result

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def _serve(pipe: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        job = pipe.recv()
        try:
            pipe.send((job(), ""))
        except DataError as error:
            pipe.send((error, ""))
        except BaseException:  # noqa: BLE001 - the test that asked for it shows it
            pipe.send((None, traceback.format_exc()))


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    started = Reader()
    started.ask(int, timeout_s=300)  # it imports what this file does
    yield started
    started.close()


def read_day(root: str, encoder: Encoder, cut_to: int | None = None) -> dict[str, list[bytes]]:
    """All columns of all units of a day's log.

    Args:
        root: Of the log.
        encoder: Of its rows.
        cut_to: Cut the log's file to this many bytes after the first unit.
    """
    logs = Storage(root)
    (day,) = check_days(logs, [DAY], 8 if cut_to is None else 8192, encoder.schema, encoder.columns)
    plan = ReadPlan(logs, encoder, (0,), seed=1, shuffle_rows=False)
    found = {}
    for parcel in read_parcels(plan, unit_entries(day.units)):
        if parcel.kind == "bad":
            raise DataError(parcel.text)
        assert parcel.rows is not None
        found[day.units[parcel.unit].key] = [column.tobytes() for column in parcel.rows.arrays().values()]
        if cut_to is not None:
            os.truncate(logs.path(day.units[0].file), cut_to)
    return found


def _footer(parquet: bytes) -> int:
    """Where a Parquet file's footer begins."""
    return len(parquet) - 8 - int.from_bytes(parquet[-8:-4], "little")


def _damage(data: bytes, footer: int, draw: random.Random) -> bytes:
    """A file with flipped bits, above all in its footer, or cut, zeroed, overwritten, or of another length."""
    bad, size = bytearray(data), len(data)
    place, length = draw.randrange(size), draw.choice([1, 8, 64, 512])
    match draw.choice(["flip", "footer", "footer", "data", "cut", "zero", "swap", "footer length", "random", "insert"]):
        case "flip":
            bad[place] ^= 1 << draw.randrange(8)
        case "footer":
            bad[draw.randrange(footer, size)] ^= 1 << draw.randrange(8)
        case "data":
            bad[draw.randrange(footer)] = draw.randrange(256)
        case "cut":
            del bad[place:]
        case "zero":
            bad[place : place + length] = bytes(len(bad[place : place + length]))
        case "swap":
            other = draw.randrange(size)
            bad[place], bad[other] = bad[other], bad[place]
        case "footer length":
            bad[-8:-4] = draw.randbytes(4)
        case "random":
            bad[place : place + length] = draw.randbytes(len(bad[place : place + length]))
        case "insert":
            bad[place:place] = draw.randbytes(length)
    return bytes(bad)


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_damaged_logs(reader: Reader, write_log: Callable[..., Storage], tiny_encoder: Encoder, first: int) -> None:
    """Catches damage that is read as other rows, or as fewer, or ends in a traceback, a crash or a giant allocation."""
    logs = write_log([[[20, 7, 30]]])
    file = Path(logs.path(f"dt={DAY}/part-0.parquet"))
    job, data = partial(read_day, logs.url, tiny_encoder), file.read_bytes()
    good, refused = reader.ask(job), 0
    for seed in range(first, first + 100):
        file.write_bytes(_damage(data, _footer(data), random.Random(seed)))
        result = reader.ask(job)
        if isinstance(result, DataError):
            refused += 1
            text = str(result)
            assert "part-0.parquet" in text, (seed, text)
            assert "\n" not in text, (seed, text)
            assert "alloc" not in text, (seed, text)
        else:
            assert result == good, f"seed {seed}: other rows"
    assert 50 < refused < 100


def test_a_row_group_that_says_it_is_empty(
    reader: Reader, write_log: Callable[..., Storage], tiny_encoder: Encoder
) -> None:
    """Catches the one byte of a footer that makes a row group's rows disappear: no unit, no audit, no word of it."""
    logs = write_log([[[20, 7, 30]]])
    file = Path(logs.path(f"dt={DAY}/part-0.parquet"))
    data, num_refused = file.read_bytes(), 0
    for place in (
        place for place in range(_footer(data), len(data) - 8) if data[place] == 2 * 30
    ):  # as Thrift writes 30
        file.write_bytes(data[:place] + b"\x00" + data[place + 1 :])
        result = reader.ask(partial(read_day, logs.url, tiny_encoder))
        num_refused += isinstance(result, DataError) and "57 rows, its row groups have 27" in str(result)
    assert num_refused == 1


def test_a_file_that_is_cut_while_it_is_read(reader: Reader, tmp_path: Path, tiny_encoder: Encoder) -> None:
    """Catches a memory map: reading beyond the end of a file that was cut short ends the process with a SIGBUS."""
    size, file = 200_000, tmp_path / f"dt={DAY}" / "part-0.parquet"
    numbers = np.random.default_rng(1).integers(0, 2**40, size)
    columns = {name: pa.array(numbers) for name in ("number", "video")}
    columns |= {name: pa.array(np.zeros(size, np.int8)) for name in ("click", "liked", "slot")}
    columns["history"] = pa.ListArray.from_arrays(pa.array(np.zeros(size + 1, np.int32)), pa.array([], pa.int64()))
    file.parent.mkdir()
    pq.write_table(pa.table(columns), file, row_group_size=size, use_dictionary=False, data_page_size=4096)
    result = reader.ask(partial(read_day, str(tmp_path), tiny_encoder, cut_to=5000))
    assert isinstance(result, DataError)
    assert "part-0.parquet, row group 0" in str(result)


# --- Manifests and cursors ---


def _checkpoint(line: Line, step: int, day: DayLog, seen: tuple[int, int]) -> str:
    name, keys = f"checkpoints/{DAY}/0001/{step:010d}", [unit.key for unit in day.units]
    write_manifest(line, name, manifest_of(step=step, day=DAY, files_of_log=dict(day.files)))
    write_position(line, name, StoredCursor({keys[0]: seen}, [seen[0], 1]), [keys[:3], keys[3:]])
    return name


@pytest.mark.parametrize("first", range(0, 120, 60))
def test_damaged_manifests(
    tmp_path: Path,
    write_log: Callable[..., Storage],
    tiny_encoder: Encoder,
    caplog: pytest.LogCaptureFixture,
    first: int,
) -> None:
    """Catches a manifest or a cursor that is damaged and believed, or that stops a line which has an older one."""
    logs, line = write_log([[[9, 5], [7]]]), Line.of(str(tmp_path), "main")
    line.begin_attempt([DAY], "a", lambda: None)
    days = tuple(check_days(logs, [DAY], 4, tiny_encoder.schema, tiny_encoder.columns))
    older, newer = _checkpoint(line, 10, days[0], (2, 77)), _checkpoint(line, 20, days[0], (4, 99))
    segments = {name: _segments(line, name, logs, days, tiny_encoder) for name in (older, newer)}
    path, passed_over = Path(line.storage.path(f"{newer}/manifest.json")), 0
    data = path.read_bytes()
    for seed in range(first, first + 60):
        path.write_bytes(_damage(data, len(data) // 2, random.Random(seed)))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = line.newest()
        assert found is not None, seed
        assert _segments(line, found.checkpoint, logs, days, tiny_encoder) == segments[found.checkpoint], seed
        if found.checkpoint == older:
            passed_over += 1
            assert newer in caplog.text, seed
    assert passed_over > 40


def _segments(line: Line, checkpoint: str, logs: Storage, days: Any, encoder: Encoder) -> Any:
    manifest = line.read_manifest(checkpoint)
    assert manifest is not None
    start = StreamStart("0001", line.resume_point(manifest))
    return RunPlan(logs, whole_days(days), 1, encoder, IngestConfig(), 1, (lambda: start,)).segments([start], 2)
