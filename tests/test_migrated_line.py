"""Migration of a whole line, with ledger and LATEST: it trains on, or nothing has changed."""

import contextlib
import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from local_training import on_processes
from migrations import changed, trained

from features.errors import ConfigError, DataError
from features.synthetic.logs import SyntheticConfig, write_day
from pipeline.cluster.session import run_workers
from pipeline.config.load import parse_config
from pipeline.config.project import Config
from pipeline.lineage.audit import audit_line
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.lineage.records import Published
from pipeline.lineage.stored_checkpoint import CURSOR, LANES
from pipeline.log_passes.statistics import fit_statistics
from pipeline.migration.migrate import migrate
from pipeline.trainer.train_line import train

__all__ = ["trained"]  # fixtures


DAYS = ["2026-01-01", "2026-01-02"]
EVERY_DAY = 1200


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A line of one trained day."""
    folder = tmp_path_factory.mktemp("line")
    world = SyntheticConfig(
        seed=5,
        first_day=date(2026, 1, 1),
        rows_per_day=EVERY_DAY,
        num_users=200,
        num_videos=200,
        num_authors=20,
        files_per_day=2,
        row_group_rows=300,
    )
    for day in DAYS:
        write_day(world, date.fromisoformat(day), folder / "logs")
    config = parse_config(
        {
            "name": "migrate",
            "root": str(folder / "root"),
            "seed": 11,
            "logs": {"path": str(folder / "logs")},
            "schema": {
                "tables": [{"name": "user", "num_rows": 300, "dim": 8}, {"name": "video", "num_rows": 300, "dim": 8}],
                "features": [
                    {"kind": "id", "name": "user_id", "table": "user"},
                    {"kind": "id", "name": "video_id", "table": "video"},
                    {"kind": "dense", "name": "duration_ms", "log1p": True},
                ],
                "tasks": [{"name": "ctr", "label": "click"}, {"name": "shr", "label": "share", "space": "played == 1"}],
            },
            "model": {
                "network": {"kind": "cgc", "expert_layers": [16], "num_experts_per_task": 1, "num_shared_experts": 1},
                "towers": [8],
            },
            "optimizer": {"tables": {"learning_rate": 0.1}, "dense": {"learning_rate": 0.01}},
            "ingest": {"batch_size": 64, "unit": {"max_rows": 200}},
            "workers": {"num": 2, "timeout_s": 60, "max_failures": 0},
            "ray": {"num_cpus": 5},
        },
        "test",
    )
    with on_processes():
        fit_statistics(config, DAYS[:1])
        train(config, DAYS[:1], passes=1)
    return config


@pytest.fixture
def copied(line: Config, tmp_path: Path, local_training: None) -> Config:
    """The line, for one test."""
    shutil.copytree(line.root, tmp_path / "root")
    return line.model_copy(update={"root": str(tmp_path / "root")})


def _wider(data: dict[str, Any]) -> None:
    """A task, a table, three features of which two need statistics, and an expert; the day is read otherwise."""
    schema = data["schema"]
    schema["tasks"].insert(0, {"name": "cmr", "label": "comment", "space": "played == 1"})
    schema["tables"].append({"name": "age", "num_rows": 9, "dim": 4})
    schema["features"].insert(1, {"kind": "bucket", "name": "age", "column": "video_age_hours", "table": "age"})
    schema["features"][1]["num_buckets"] = 8
    schema["features"].insert(0, {"kind": "dense", "name": "video_plays_7d", "log1p": True})
    schema["features"].append({"kind": "dense", "name": "user_follows", "standardise": False, "log1p": True})
    data["model"]["network"]["num_shared_experts"] = 2
    data["ingest"]["unit"]["max_rows"] = 150


def test_a_line_goes_on_with_another_schema(copied: Config) -> None:
    """Catches a checkpoint that cannot be trained from or audited, and a manifest that says what is not so."""
    line = Line.of(copied.root, copied.line)
    parent = line.newest()
    assert parent is not None
    found = migrate(changed(copied, _wider), None, DAYS[:1])
    assert found["from"] == parent.checkpoint
    assert found["checkpoint"] == f"checkpoints/{DAYS[0]}/0002/{parent.step:010d}-migrated"
    assert "table user" in found["kept"]
    assert {"table age", "tower of task cmr", "shared expert 1, level 1", "input columns of feature age"} <= set(
        found["new"]
    )
    assert found["dropped"] == []
    assert found["num_dropped"] == 0
    manifest = line.read_manifest(found["checkpoint"])
    assert manifest is not None
    assert line.damage(manifest) is None
    assert {CURSOR, LANES} <= set(manifest.files)  # rank 0 has written all of it
    then, now = parent.model_dump(), manifest.model_dump()
    changed_keys = {key for key in now if then.get(key) != now[key]}
    assert changed_keys == {
        *("attempt", "config", "files", "migrated_from", "rows_in_space"),
        *("schema_fingerprint", "sharding", "statistics"),
    }
    assert now["rows_in_space"] == {"cmr": 0} | then["rows_in_space"]
    assert line.cursor(manifest).in_space == [0, *line.cursor(parent).in_space]
    assert (line.cursor(manifest).units, line.lanes(manifest)) == (line.cursor(parent).units, line.lanes(parent))
    assert set(now["sharding"]) == {"user", "video", "age"}
    numbers = now["statistics"]["numbers"]
    assert set(numbers) == {"duration_ms", "video_plays_7d", "age"}
    assert numbers["duration_ms"] == then["statistics"]["numbers"]["duration_ms"]
    assert (numbers["video_plays_7d"]["count"], len(numbers["age"]["boundaries"])) == (EVERY_DAY, 7)
    assert audit_line(copied, found["checkpoint"])["rows"] == EVERY_DAY
    old, new = Ledger(line).generations(DAYS[0])
    assert line.latest() == Published(day=DAYS[0], generation=2, checkpoint=found["checkpoint"])
    assert (old.checkpoint, new.checkpoint, new.kind) == (parent.checkpoint, found["checkpoint"], "migrate")
    assert new.parent is None
    with pytest.raises(DataError, match=r"with another model section: .*jobs\.migrate"):  # the old config
        train(copied, DAYS[1:], passes=1)
    result = train(changed(copied, _wider), DAYS[1:], passes=1)
    newest = line.read_manifest(result["checkpoint"])
    assert newest is not None
    assert newest.parent == found["checkpoint"]
    assert newest.days_done == 2
    assert audit_line(copied, result["checkpoint"])["rows"] == 2 * EVERY_DAY


def test_a_migration_that_is_overtaken_leaves_nothing(copied: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a migration that completes although a training has taken the line over meanwhile."""
    line = Line.of(copied.root, copied.line)
    names = {manifest.checkpoint for manifest in line.manifests()}

    def overtaken(*arguments: Any) -> dict[str, Any]:
        line.begin_attempt(DAYS[1:], "other", line.newest)
        return run_workers(*arguments)

    monkeypatch.setattr("pipeline.migration.migrate.run_workers", overtaken)
    with pytest.raises(DataError, match=r"attempt 0002 no longer holds"):
        migrate(copied, None)
    assert len(Ledger(line).generations(DAYS[0])) == 1
    newest = line.newest()
    assert newest is not None
    assert newest.checkpoint in names
    assert {manifest.checkpoint for manifest in line.manifests()} == names
    record = line.attempts(DAYS[:1])[-1]
    assert (record.attempt, record.result, record.migrates) == (2, "failed", *names)


def _salted(data: dict[str, Any]) -> None:
    data["schema"]["hash_salt"] = "other"


def _stepped_otherwise(data: dict[str, Any]) -> None:
    data["optimizer"]["dense"]["kind"] = "sgd"


def _nothing(data: dict[str, Any]) -> None:
    pass


NONE, SOME_DAY = (None,), (None, DAYS[:1])


@pytest.mark.parametrize(
    ("change", "arguments", "error", "message"),
    [
        (_salted, NONE, ConfigError, r"schema\.hash_salt was 'counterpoise' in .* and is 'other': every id has"),
        (_stepped_otherwise, NONE, ConfigError, r"optimizer\.dense\.kind was 'adam' in .* and is 'sgd': "),
        (_wider, NONE, ConfigError, r"features \['video_plays_7d', 'age'\] need statistics .* --statistics-days"),
        (_wider, (None, ["2026-02-01"]), DataError, r"dt=2026-02-01 is missing"),
        (_nothing, SOME_DAY, ConfigError, r"no feature needs statistics .* leave --statistics-days out"),
        (
            _nothing,
            ("checkpoints/2026-01-01/0001/0000000001",),
            DataError,
            r"is not what is published, which is .*--rollback",
        ),
        (lambda data: data.update(line="empty"), NONE, ConfigError, r"nothing published"),
    ],
)
def test_what_cannot_be_migrated_is_refused(
    copied: Config, change: Any, arguments: Any, error: Any, message: str
) -> None:
    """Catches a refusal that comes after the line was taken over, or that does not say what to do."""
    with _nothing_changes(copied), pytest.raises(error, match=message):
        migrate(changed(copied, change), *arguments)


@contextlib.contextmanager
def _nothing_changes(config: Config) -> Iterator[None]:
    """Files of the root are the same before and after."""

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in Path(config.root).rglob("*") if path.is_file()}

    before = files()
    yield
    assert files() == before


def test_a_damaged_checkpoint_is_not_migrated(copied: Config) -> None:
    """Catches a migration of files that are not what was written."""
    line = Line.of(copied.root, copied.line)
    newest = line.newest()
    assert newest is not None
    line.storage.write(f"{newest.checkpoint}/__0_0.distcp", b"half")
    with _nothing_changes(copied), pytest.raises(DataError, match=r"__0_0\.distcp has 4 bytes"):
        migrate(copied, newest.checkpoint)
