"""A root that the code of 2026-11-29 wrote, before records were typed, is continued as that code continued it.

`data/old_root.tar.xz` was made by that code: a configuration with a vocabulary, a hold-out, late labels and a
quarantined unit; three days of logs; a root that was stopped within the second day; and what the same code made of it
in the end: the entries of the ledger (`expected.json`) and all tensors (`expected.pt`).
"""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from old_root import extract_old_root
from small_runs import weights

from pipeline.config.project import Config
from pipeline.daily.accepted import Accepted
from pipeline.daily.ray_work import RayWork
from pipeline.daily.run_days import run_days
from pipeline.lineage.audit import audit_line
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.lineage.records import Manifest

DAYS = ["2026-01-01", "2026-01-02", "2026-01-03"]
WITHIN = "checkpoints/2026-01-02/0002/0000000303"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return extract_old_root(tmp_path)


def _daily(config: Config, days: list[str]) -> dict[str, Any]:
    line = Line.of(config.root, config.line)
    with contextlib.ExitStack() as stack:
        return run_days(config, line, RayWork(config, line, stack), days, 0, Accepted())


def _processor() -> str:
    """Return what the bits of a matrix product depend on."""
    lines = dict(line.partition(":")[::2] for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    found = {name.strip(): value.strip() for name, value in lines.items()}
    return f"{found['model name']} {hashlib.sha256(found['flags'].encode()).hexdigest()[:8]}"


def test_records_of_format_3_are_read(config: Config, tmp_path: Path) -> None:
    """Catches a record of the past that is passed over, or read as another one."""
    line = Line.of(config.root, "main")
    newest = line.newest()
    assert newest is not None
    assert (newest.checkpoint, newest.complete, newest.rows) == (WITHIN, False, 848)
    content = json.loads((tmp_path / "root/lines/main" / WITHIN / "manifest.json").read_text())
    cursor = line.cursor(newest)
    assert {key: [count, str(total)] for key, (count, total) in cursor.units.items()} == content["cursor"]["units"]
    assert cursor.quarantined == content["cursor"]["quarantined"]
    assert [list(lane) for lane in line.lanes(newest)] == content["lanes"]
    (attempt,) = line.attempts([DAYS[1]])
    assert (attempt.attempt, attempt.result, attempt.start_step) == (2, "interrupted", 125)
    (entry,) = Ledger(line).chain()
    assert (entry.kind, entry.rows, entry.held_out, entry.pass_index) == ("daily", 2000, 368, 0)
    again = Manifest.from_bytes(newest.model_copy(update={"cursor": None, "lanes": None}).to_bytes())
    assert again.model_dump(exclude={"checkpoint", "cursor", "lanes"}) == newest.model_dump(
        exclude={"checkpoint", "cursor", "lanes"}
    )


def test_it_goes_on_as_the_code_that_wrote_it(config: Config, local_training: None, tmp_path: Path) -> None:
    """Catches a decision of today that changes a line of yesterday: rows, ids, lanes, dice, or what a record means."""
    expected = json.loads((tmp_path / "expected.json").read_text())
    assert _daily(config, DAYS[1:])["result"] == "published"
    line = Line.of(config.root, config.line)
    for entry in Ledger(line).chain():
        if entry.day == DAYS[0]:
            continue
        then = expected["entries"][entry.day]
        now = entry.model_dump(mode="json", include=set(then) - {"late", "quarantined", "config", "before"})
        now |= {"late": {day: late.rows_in_space for day, late in entry.late.items()}}
        now |= {"quarantined": sorted(entry.quarantined)}
        assert now == {name: then[name] for name in now}
    assert audit_line(config, None)["result"] == "every row once"
    latest = line.latest()
    assert latest is not None
    found, wanted = (
        weights(config, latest.checkpoint, tmp_path),
        torch.load(tmp_path / "expected.pt", weights_only=True),
    )
    assert set(found) == set(wanted)
    if (_processor(), torch.__version__) == (expected["processor"], expected["torch"]):
        assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    for name, tensor in wanted.items():  # another processor rounds matrix products in its own way
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
