"""Records that are damaged, that a later version wrote, or whose files are not what was written."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from records import manifest_of, write_manifest, write_position

from features.errors import ConfigError, DataError
from pipeline.ingest.cursor import StoredCursor
from pipeline.lineage.line import Line
from pipeline.lineage.records import Latest, LeaseRecord, Manifest, Pin
from pipeline.lineage.stored_checkpoint import CURSOR, LANES, pin
from pipeline.storage.record import LaterVersion
from pipeline.storage.sealed_json import seal, unseal
from pipeline.trainer.worker_setup import Groups

NAME = "checkpoints/2026-01-01/0001/0000000010"


@pytest.fixture
def line(tmp_path: Path) -> Line:
    line = Line.of(str(tmp_path), "main")
    line.begin_attempt(["2026-01-01"], "a", lambda: None)
    write_position(line, NAME, StoredCursor({"unit": (7, 2**64 - 1)}, [7]), [["unit"], []])
    write_manifest(line, NAME, manifest_of(step=10))
    return line


def _raised(line: Line, name: str) -> None:
    """Give a record the version after the present one."""
    content = unseal(line.storage.read(name))
    key = "format" if "format" in content else "version"
    line.storage.write(name, seal(content | {key: content[key] + 1}))


def test_a_later_version_is_no_damage(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    """Catches a person who is told to roll back a healthy line after going back to an earlier version."""
    with caplog.at_level(logging.WARNING):
        assert line.newest() is not None
        _raised(line, f"{NAME}/manifest.json")
        assert line.newest() is None
    assert "its manifest cannot be read: it has format 6, this version of Counterpoise reads up to 5" in caplog.text
    assert "damaged" not in caplog.text
    _raised(line, "LATEST")
    with pytest.raises(ConfigError, match=r"LATEST cannot be read: it has version 3, .*: use the version that wrote"):
        line.latest()
    with pytest.raises(LaterVersion):
        LeaseRecord.from_bytes(seal({"version": 3}))


def test_a_pin_of_a_later_version_keeps_its_checkpoint(line: Line) -> None:
    """Catches a branch whose first checkpoint is removed because its pin could not be read."""
    file = pin(line.storage, NAME, "line b", 1e18, "b")
    assert line.is_pinned(NAME)
    _raised(line, file)
    assert line.is_pinned(NAME)
    line.storage.write(file, Pin(holder="line b", until=0.0).to_bytes())
    assert not line.is_pinned(NAME)  # negative control


@pytest.mark.parametrize("file", [CURSOR, LANES])
@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_cursor_that_is_not_what_was_written_is_refused(line: Line, file: str, damage: str) -> None:
    """Catches a cursor that is believed although the manifest, which once held it, has another checksum of it."""
    newest = line.newest()
    assert newest is not None
    assert line.resume_point(newest).seen.units == {"unit": (7, 2**64 - 1)}
    path = Path(line.storage.path(f"{NAME}/{file}"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data) if damage == "flipped" else path.unlink()
    with pytest.raises(DataError, match=f"{file} is missing or not what was written: restore it, or go back"):
        line.resume_point(newest)


def test_what_is_not_set_is_not_written() -> None:
    """Catches a record that an older reader would take for published, and fields that lose their None."""
    assert set(unseal(Latest(fence=3).to_bytes())) == {"version", "fence", "holder", "serial"}
    manifest = manifest_of(config={"a": None, "b": {"c": [None]}}, step=1)
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


def _on_first(rank: int, num_ranks: int, error: Exception | None) -> Any:
    groups = Groups.create(60)

    def work(shares: list[int]) -> int:
        if error is not None:
            raise error
        return sum(shares)

    try:
        return groups.on_first(rank + 1, work)
    except Exception as met:  # noqa: BLE001 - the test looks at it
        return type(met).__name__, str(met)


def test_an_error_on_the_first_rank_is_raised_on_all(run_ranks: Any) -> None:
    """Catches ranks that wait for a first rank which has failed, until a time-out says something else."""
    assert run_ranks(partial(_on_first, error=None), 3) == [6, None, None]
    assert run_ranks(partial(_on_first, error=DataError("no")), 3) == [("DataError", "no")] * 3
    assert run_ranks(partial(_on_first, error=KeyError("x")), 3) == [("RuntimeError", "rank 0: KeyError: 'x'")] * 3
