"""Migration: what two models have in common is kept to the last bit, optimizer state too; on gloo ranks and Ray."""

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import ray
import torch
from local_training import on_processes
from records import manifest_of
from test_train_step import Run, assert_tables_moved, blocks_of, make_config, whole

from features.errors import ConfigError, DataError
from features.synthetic.logs import SyntheticConfig, write_day
from pipeline.checkpoint.read import stored_tensors
from pipeline.checkpoint.write import write_checkpoint
from pipeline.cluster.session import run_workers
from pipeline.config.load import parse_config
from pipeline.config.project import Config
from pipeline.lineage.audit import audit_line
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.lineage.records import Published
from pipeline.lineage.stored_checkpoint import CURSOR, LANES
from pipeline.log_passes.statistics import fit_statistics
from pipeline.migration.inheritance import Declared, check_stored, compare, inherit
from pipeline.migration.migrate import migrate
from pipeline.storage.files import Storage
from pipeline.trainer.train_line import train
from pipeline.trainer.train_state import TrainState
from pipeline.trainer.worker_setup import Groups, build_state

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import this file

SOME = range(4)
Tensors = dict[str, torch.Tensor]


def changed(config: Config, change: Callable[[dict[str, Any]], None]) -> Config:
    """A configuration with something else in it."""
    data = json.loads(config.model_dump_json(by_alias=True))
    data["optimizer"]["dense"]["betas"] = tuple(data["optimizer"]["dense"]["betas"])
    change(data)
    return parse_config(data, "test")


def _old(sharding: Any = "row_wise", **options: Any) -> Config:
    return make_config(sharding, weight_decay=0.01, **options)


def _grow(data: dict[str, Any]) -> None:
    """A task second, a table second, an id and a number among the features, a shared expert on level 1."""
    schema = data["schema"]
    schema["tasks"].insert(1, {"name": "like", "label": "like"})
    schema["tables"].insert(1, {"name": "author", "num_rows": 20, "dim": 4})
    schema["features"].insert(1, {"kind": "id", "name": "author_id", "table": "author"})
    schema["features"].insert(4, {"kind": "dense", "name": "plays", "standardise": False})
    data["model"]["network"]["levels"][0]["num_shared_experts"] = 3
    if data["sharding"]["tables"].get("video") == "table_wise":
        data["sharding"]["tables"]["author"] = "table_wise"


# Where the old model's indices are in the new one, counted by hand; None: all of them stay where they are.
COLUMNS = [*range(8), *range(12, 28), 29]  # user, (author), video, watched, (plays), age
EXPERTS = [0, 2, 3, 4, 5]  # click, (like), share, completion, two shared ones, (a third)
UPPER = [0, 2, 3, 4]
ROWS = [0, 1, 2, 8, 9, 10, 12, 13, 14, 16, 18, 19, 20, 21]  # each task's own and the shared ones; the shared gate's
TASKS = [0, 2, 3]
PLACES: dict[str, list[list[int] | None]] = {
    "head.network.levels.0.experts.0.weight": [EXPERTS, None, COLUMNS],
    "head.network.levels.0.experts.0.bias": [EXPERTS, None],
    "head.network.levels.0.gates.logits.weight": [ROWS, COLUMNS],
    "head.network.levels.1.experts.0.weight": [UPPER, None, None],
    "head.network.levels.1.experts.0.bias": [UPPER, None],
    "head.network.levels.1.gates.logits.weight": [[0, 1, 4, 5, 6, 7], None],
    "head.towers.hidden.0.weight": [TASKS, None, None],
    "head.towers.hidden.0.bias": [TASKS, None],
    "head.towers.outputs.weight": [TASKS, None],
    "head.towers.outputs.bias": [TASKS],
    "inputs.missing_values.values": [[1]],
}


@dataclass(frozen=True)
class Migrate:
    """What the ranks do: build the new model, inherit, and save.

    Args:
        old: The configuration of the checkpoint.
        new: Of the model.
        load: Folder of the checkpoint.
        save: Folder of the one to write.
        patches: Attributes to replace meanwhile, by dotted name.
    """

    old: Config
    new: Config
    load: str
    save: str | None = None
    patches: dict[str, Any] = field(default_factory=dict)

    def __call__(self, rank: int, num_ranks: int) -> dict[str, Any]:
        """Migrate on one rank; returns its blocks of every tensor as a fresh model has them, and after."""
        torch.set_num_threads(1)
        groups = Groups.create(60)
        state = build_state(self.new, groups.training, torch.device("cpu"))
        fresh = blocks_of({"model": state.model.state_dict()})
        with contextlib.ExitStack() as stack:
            for name, value in self.patches.items():
                stack.enter_context(mock.patch(name, value))
            old, new = (Declared(config.log_schema, config.model) for config in (self.old, self.new))
            check_stored("checkpoint", old, stored_tensors(Storage(self.load), "checkpoint"))
            inherit(state, old, new, Storage(self.load), "checkpoint", groups.saving)
        if self.save:
            manifest = manifest_of() if rank == 0 else None
            write_checkpoint(state.tensors(), Storage(self.save), "checkpoint", manifest, groups.saving)
        return {"fresh": fresh, "after": blocks_of(state.tensors())}


@pytest.fixture(scope="module")
def trained(run_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Tensors]:
    """A checkpoint of 2 ranks, with weight decay, and its tensors."""
    folder = str(tmp_path_factory.mktemp("trained"))
    results = run_ranks(Run(_old(), steps=SOME, save=folder), 2)
    assert_tables_moved(results)
    tensors = whole(results, "after")
    moments = [tensor for name, tensor in tensors.items() if name.endswith(("exp_avg", "exp_avg_sq", "momentum1"))]
    assert len(moments) == 2 * len(PLACES) + 2
    assert all(tensor.abs().max() > 0 for tensor in moments)
    return folder, tensors


def _expected(old: torch.Tensor, fresh: torch.Tensor, places: list[list[int] | None]) -> torch.Tensor:
    """A fresh tensor with the old one's numbers in the places counted by hand."""
    axes = [list(range(size)) if of_axis is None else of_axis for size, of_axis in zip(old.shape, places, strict=True)]
    expected = fresh.clone()
    expected[torch.meshgrid(*map(torch.tensor, axes), indexing="ij")] = old
    return expected


def _differing(old: Tensors, results: list[dict[str, Any]]) -> list[str]:
    """Names of tensors of the grown model that are not bit for bit what they have to be."""
    fresh, after = whole(results, "fresh"), whole(results, "after")
    wrong = []
    for name, places in PLACES.items():
        weight = f"model:ranker.{name}"
        expected = {weight: _expected(old[weight], fresh[weight], places)}
        for kind in ("exp_avg", "exp_avg_sq"):
            state = f"dense:ranker.{name}/{kind}"
            expected[state] = _expected(old[state], torch.zeros_like(fresh[weight]), places)
        expected[f"dense:ranker.{name}/step"] = old[f"dense:ranker.{name}/step"]
        wrong += [key for key, tensor in expected.items() if not torch.equal(tensor, after.pop(key))]
    bags = "ranker.embeddings.embedding_bags"
    for table in ("user", "video"):
        names = (f"model:{bags}.{table}.weight", f"tables:{bags}.{table}.weight/{table}.momentum1")
        wrong += [name for name in names if not torch.equal(old[name], after.pop(name))]
    author = after.pop(f"model:{bags}.author.weight"), after.pop(f"tables:{bags}.author.weight/author.momentum1")
    if not torch.equal(author[0], fresh[f"model:{bags}.author.weight"]) or author[1].any():
        wrong.append("author")
    assert not after, f"not looked at: {list(after)}"
    return wrong


@pytest.mark.parametrize(
    ("sharding", "num_ranks"),
    [("row_wise", 1), ("row_wise", 3), ("table_wise", 2), ({"user": "data_parallel", "video": "row_wise"}, 2)],
)
def test_what_is_common_is_kept_bit_for_bit(run_ranks: Any, trained: Any, sharding: Any, num_ranks: int) -> None:
    """Catches a weight, a moment or an accumulator that is lost, lands elsewhere, or is not as a fresh model has it."""
    folder, old = trained
    new = changed(_old(sharding), _grow)
    assert _differing(old, run_ranks(Migrate(_old(), new, folder), num_ranks)) == []


def _materialise_only(state: TrainState) -> None:
    state.optimizer.materialise()


def test_control_a_step_that_only_allocates_is_seen(run_ranks: Any, trained: Any) -> None:
    """Shows that the test above can fail: torch allocates Adam's state by a step, in which weight decay moves what is
    new and leaves moments behind.
    """
    folder, old = trained
    patches = {"pipeline.migration.inheritance.allocate_optimizers": _materialise_only}
    results = run_ranks(Migrate(_old(), changed(_old(), _grow), folder, patches=patches), 1)
    wrong = _differing(old, results)
    assert "model:ranker.head.network.levels.0.experts.0.weight" in wrong
    assert "dense:ranker.head.towers.hidden.0.weight/exp_avg" in wrong


def test_the_same_configuration_gives_the_same_bits(run_ranks: Any, trained: Any) -> None:
    """Catches anything that a migration changes although nothing was asked for."""
    folder, old = trained
    after = whole(run_ranks(Migrate(_old(), _old("table_wise"), folder), 3), "after")
    assert set(after) == set(old)
    assert [name for name, tensor in old.items() if not torch.equal(tensor, after[name])] == []


def test_there_and_back(run_ranks: Any, trained: Any, tmp_path: Path) -> None:
    """Catches a checkpoint of a migration that cannot be migrated itself, and a drop that takes too much."""
    folder, old = trained
    grown, written = changed(_old(), _grow), str(tmp_path)
    run_ranks(Migrate(_old(), grown, folder, save=written), 2)
    after = whole(run_ranks(Migrate(grown, _old(), written), 1), "after")
    assert [name for name, tensor in old.items() if not torch.equal(tensor, after[name])] == []


def test_a_parameter_that_is_new_has_not_stepped(run_ranks: Any, trained: Any) -> None:
    """Catches an Adam that takes a new layer's first steps for its thousandth, or a kept one's for its first."""
    folder, old = trained
    results = run_ranks(Migrate(_old(), changed(_old(), lambda d: d["model"].update(towers=[8, 4])), folder), 1)
    after = whole(results, "after")
    steps = {name.removeprefix("dense:ranker.head.towers."): t.item() for name, t in after.items() if "/step" in name}
    assert old["dense:ranker.head.towers.outputs.bias/step"] == len(SOME)
    assert steps["hidden.0.weight/step"] == steps["outputs.bias/step"] == len(SOME)
    assert steps["hidden.2.weight/step"] == steps["hidden.2.bias/step"] == steps["outputs.weight/step"] == 0


def _other_tables(data: dict[str, Any]) -> None:
    """The user's table is gone, the videos' has other rows."""
    schema = data["schema"]
    schema["tables"] = [{"name": "video", "num_rows": 51, "dim": 8}]
    schema["features"] = [feature for feature in schema["features"] if feature.get("table") != "user"]
    data["sharding"]["tables"] = {}


def test_a_hashed_table_of_other_rows_is_new(run_ranks: Any, trained: Any) -> None:
    """Catches rows that are kept for other ids, and a report that does not say why a table is new."""
    folder, old = trained
    new = changed(_old(), _other_tables)
    results = run_ranks(Migrate(_old(), new, folder), 2)
    fresh, after = whole(results, "fresh"), whole(results, "after")
    name = "ranker.embeddings.embedding_bags.video.weight"
    assert torch.equal(after[f"model:{name}"], fresh[f"model:{name}"])
    assert not after[f"tables:{name}/video.momentum1"].any()
    weight = "model:ranker.head.network.levels.0.experts.0.weight"
    assert torch.equal(after[weight], old[weight][:, :, 8:])  # the columns of what is left, its table new or not
    found = compare(*(Declared(config.log_schema, config.model) for config in (_old(), new)))
    assert found.new == ["table video (it had 50 rows and has 51: ids are hashed over all of them)"]
    assert found.dropped == ["table user", "table video", "input columns of feature user_id"]


def test_a_checkpoint_of_other_shapes_is_refused(trained: Any) -> None:
    """Catches tensors that are cut to what they are not."""
    folder, _ = trained
    stored = stored_tensors(Storage(folder), "checkpoint")
    for change, name in ((_grow, "missing_values.values"), (_other_tables, "levels.0.experts.0.weight")):
        new = changed(_old(), change)
        with pytest.raises(DataError, match=rf"has model\.ranker\..*{name} of shape .* declares"):
            check_stored("checkpoint", Declared(new.log_schema, new.model), stored)
    rows = changed(_old(), lambda data: data["schema"]["tables"][1].update(num_rows=51))
    with pytest.raises(DataError, match=r"embedding_bags.video.weight of shape \(50, 8\), .* declares \(51, 8\)"):
        check_stored("checkpoint", Declared(rows.log_schema, rows.model), stored)


# --- A whole run ---

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
        line.begin_attempt(DAYS[1:], "other", lambda _: line.newest())
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
