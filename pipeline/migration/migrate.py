"""Migration: a living line continues with another schema or model, and keeps all that both share.

The published checkpoint is rewritten for another configuration, without training. The new checkpoint is of the same
day, and the day's next generation in the ledger.
"""

import contextlib
import functools
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError
from ray.data import DataIterator

from features.encoding import Encoder
from features.errors import ConfigError, DataError
from features.schema import BucketFeature, DenseFeature, FeatureConfig, Schema
from features.statistics import Statistics
from features.vocabulary import Vocabulary
from models.balancing import LossBalancingConfig
from pipeline.checkpoint.read import stored_tensors
from pipeline.checkpoint.write import write_checkpoint
from pipeline.cluster.failures import ending_of
from pipeline.cluster.progress import ProgressBoard
from pipeline.cluster.session import ray_session, run_workers
from pipeline.config.project import Config, ModelConfig
from pipeline.ingest.cursor import lanes_to_arrow
from pipeline.ingest.plan import RunPlan, StreamStart
from pipeline.ingest.receive import read_segments, receive_blocks
from pipeline.ingest.units import DayLog, check_days
from pipeline.lineage.day_entry import trained_entry
from pipeline.lineage.lease import lease
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.ledger_entry import LedgerEntry
from pipeline.lineage.line import Line, qualified
from pipeline.lineage.manifest import declared, library_versions
from pipeline.lineage.records import Manifest
from pipeline.lineage.stored_checkpoint import CURSOR, LANES, read_cursor, read_lanes, read_manifest
from pipeline.log_passes.admission import read_vocabularies, vocabulary_files
from pipeline.log_passes.statistics import collect_statistics
from pipeline.migration.inheritance import Declared, check_stored, compare, inherit, kept_tables
from pipeline.storage.files import Storage
from pipeline.trainer.sharding import table_shardings
from pipeline.trainer.worker_setup import begin_worker, build_state, refuse_damage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MigrateJob:
    """Job of every worker of a migration.

    Args:
        config: The new configuration.
        line: Line of the checkpoints.
        parent: The checkpoint to migrate.
        old: Declarations of its tensors.
        name: Name of the new checkpoint, below the line.
        manifest: Manifest of the new checkpoint.
    """

    config: Config
    line: Line
    parent: str
    old: Declared
    name: str
    manifest: Manifest


def migrate(config: Config, checkpoint: str | None, statistics_days: Sequence[str] = ()) -> dict[str, Any]:
    """Rewrite a checkpoint for another configuration; shared parts are kept, optimizer state included.

    Args:
        config: The new configuration, with the line's root and name.
        checkpoint: Name of the published checkpoint below the line; None: any.
        statistics_days: ISO dates on which the statistics of new features are fitted; those of the others stay.

    Returns:
        Figures of the command's JSON line: kept, new and dropped parts, in words and in numbers of parameters.

    Raises:
        ConfigError: The checkpoint does not exist, or the configuration cannot be migrated to.
        DataError: The checkpoint, or the log of the days of the statistics, does not fit, or another job holds the
            line.
    """
    line = Line.of(config.root, config.line)
    parent = _published(line, checkpoint)
    name = parent.checkpoint
    old, new = _declared(parent), Declared.by(config)
    _check_migration(config, parent)
    check_stored(name, old, stored_tensors(*line.place(name)))
    missing = _missing_statistics(config, parent, statistics_days)
    days = _days_of_statistics(config, missing, statistics_days)
    with lease(line, "jobs.migrate", config.daily.lease_s) as run, ray_session(config):
        serial = line.state().serial
        statistics = _statistics(config, parent, missing, days)
        written = _write(config, line, parent, old, statistics, run)
        entry = _enter(line, written, parent, run, serial)
        line.publish(entry.published, serial, run)
    figures = {"checkpoint": written.checkpoint, "from": name, "day": entry.day, "generation": entry.generation}
    return {"result": "migrated"} | figures | asdict(compare(old, new))


def _published(line: Line, asked: str | None) -> Manifest:
    """Return the published checkpoint's manifest, after a check that it is the requested one."""
    latest = line.latest()
    if latest is None:
        raise ConfigError(f"{line.storage.url} has nothing published: train first")
    name = latest.checkpoint
    if asked is not None and asked != name:
        raise DataError(
            f"{asked} is not what is published, which is {name} of {latest.day}: migrate that, or go back to "
            "another day first with jobs.daily --rollback DAY REASON"
        )
    return line.intact_manifest(name)


def _declared(manifest: Manifest) -> Declared:
    config = manifest.config
    schema, model = (json.dumps(config[section]) for section in ("schema", "model"))
    balancing = config.get("loss_balancing", {"kind": "schedule"})  # older configs have no other
    try:
        return Declared(
            Schema.model_validate_json(schema),
            ModelConfig.model_validate_json(model),
            TypeAdapter(LossBalancingConfig).validate_python(balancing),
        )
    except ValidationError as error:
        raise DataError(
            f"the config of {manifest.checkpoint} is of another version ({' '.join(str(error).split())}): migrate with "
            "that version, or start a new root"
        ) from error


def _check_migration(config: Config, parent: Manifest) -> None:
    """Check that the migration has parts to keep, and that their meaning is unchanged.

    Raises:
        ConfigError: A kept part has changed its meaning; names the difference.
    """
    then = parent.config
    kept = [("schema.hash_salt", then["schema"]["hash_salt"], config.log_schema.hash_salt, "every id has another row")]
    for part in ("tables", "dense"):
        kind = getattr(config.optimizer, part).kind
        kept.append((f"optimizer.{part}.kind", then["optimizer"][part]["kind"], kind, "its state means something else"))
    for key, old, new, why in kept:
        if old != new:
            raise ConfigError(
                f"{key} was {old!r} in {parent.checkpoint} and is {new!r}: {why}, keep it, or start a new root"
            )


# --- Statistics ---


def _meaning(feature: FeatureConfig) -> dict[str, Any]:
    """Return all that the statistics of a feature depend on."""
    return feature.model_dump(include={"kind", "log1p", "num_buckets"}) | {"column": feature.source}


def _missing_statistics(config: Config, parent: Manifest, days: Sequence[str]) -> list[FeatureConfig]:
    """Return the features that need statistics that the line does not have.

    Raises:
        ConfigError: Such features have no days to fit them on, or days are given without such features.
    """
    known = _known_statistics(config, parent)
    missing: list[FeatureConfig] = [
        feature
        for feature in config.log_schema.features
        if isinstance(feature, BucketFeature) or (isinstance(feature, DenseFeature) and feature.standardise)
        if feature.name not in known
    ]
    names = [feature.name for feature in missing]
    if missing and not days:
        raise ConfigError(f"features {names} need statistics that the line does not have: give --statistics-days")
    if days and not missing:
        raise ConfigError("no feature needs statistics that the line does not have: leave --statistics-days out")
    return missing


def _known_statistics(config: Config, parent: Manifest) -> dict[str, Any]:
    """Return the line's statistics of features with an unchanged meaning."""
    then = {feature.name: _meaning(feature) for feature in _declared(parent).log_schema.features}
    now = {feature.name: _meaning(feature) for feature in config.log_schema.features}
    frozen = parent.statistics.numbers if parent.statistics else {}
    return {name: found for name, found in frozen.items() if name in now and then[name] == now[name]}


def _days_of_statistics(config: Config, missing: Sequence[FeatureConfig], days: Sequence[str]) -> list[DayLog]:
    if not missing:
        return []
    schema, max_rows = _schema_of(config.log_schema, missing), config.ingest.unit.max_rows
    return check_days(Storage(config.logs.path), days, max_rows, schema, _columns(missing))


def _schema_of(schema: Schema, features: Sequence[FeatureConfig]) -> Schema:
    """Return a schema with some of its features only."""
    read = {feature.table for feature in features if not isinstance(feature, DenseFeature)}
    tables = [table for table in schema.tables if table.name in read]
    return schema.model_copy(update={"features": list(features), "tables": tables, "slot": None})


def _columns(features: Sequence[FeatureConfig]) -> list[str]:
    return list(dict.fromkeys(feature.source for feature in features))


def _statistics(
    config: Config, parent: Manifest, missing: Sequence[FeatureConfig], days: Sequence[DayLog]
) -> Statistics | None:
    """Return the line's statistics with those of new features, and without those of removed features."""
    schema = config.log_schema
    frozen = parent.statistics.model_dump(mode="json") if parent.statistics else None
    fitted: dict[str, Any] = {"days": [], "rows": 0, "numbers": {}, "distinct_ids": {}, "missing_ids": {}}
    if missing:
        logs, part = Storage(config.logs.path), _schema_of(schema, missing)
        found = collect_statistics(logs, part, _columns(missing), days, config.ingest)
        fitted = found.model_dump(mode="json")
    if frozen is None and not missing:
        return None
    old = frozen or fitted
    tables, ids = {table.name for table in schema.tables}, {f.name for f in schema.features if f.kind == "id"}
    sequences, lengths = {f.name for f in schema.features if f.kind == "sequence"}, old.get("mean_lengths", {})
    merged = {
        "days": old["days"],
        "rows": old["rows"],
        "numbers": _known_statistics(config, parent) | fitted["numbers"],
        "distinct_ids": {name: n for name, n in old["distinct_ids"].items() if name in tables},
        "missing_ids": {name: share for name, share in old["missing_ids"].items() if name in ids},
        "mean_lengths": {name: length for name, length in lengths.items() if name in sequences},
        "schema_fingerprint": schema.fingerprint(),
    }
    return Statistics.model_validate(merged)


# --- The new checkpoint ---


def _write(
    config: Config, line: Line, parent: Manifest, old: Declared, statistics: Statistics | None, run: str
) -> Manifest:
    """Write the new checkpoint, within a running Ray session."""
    workers = config.workers
    # Restarted workers would write to a place where earlier ones may still be writing: the command fails instead.
    once = workers.model_copy(update={"num": workers.fewest, "min": None, "max": None, "max_failures": 0})
    tables = [table for table in config.log_schema.tables if table.name in config.log_schema.vocabularies]
    empty = {table.name: Vocabulary.empty(table) for table in tables}  # no row is encoded
    encoder = Encoder(config.log_schema, statistics, vocabularies=empty)
    plan = RunPlan(Storage(config.logs.path), (), 1, encoder, config.ingest, config.seed, starts=(StreamStart,))
    attempt, _ = line.begin_attempt([parent.day], run, lambda: parent, migrates=parent.checkpoint, held=True)
    name = f"checkpoints/{parent.day}/{attempt}/{parent.step:010d}-migrated"
    manifest = _manifest(config, parent, statistics, attempt)
    job, board = MigrateJob(config, line, parent.checkpoint, old, name, manifest), ProgressBoard.remote()
    try:
        reported = run_workers(config.model_copy(update={"workers": once}), plan, migrate_worker, job, board)
        if reported["refused"]:
            raise DataError(reported["refused"])
    except BaseException as error:
        ending, reason = ending_of(error)
        with contextlib.suppress(OSError, DataError):  # an unreachable storage may be the reason
            line.end_attempts([parent.day], run, ending, reason)
        raise
    line.end_attempts([parent.day], run, "done")
    written = line.read_manifest(name)
    assert written is not None
    return written


def _enter(line: Line, written: Manifest, parent: Manifest, run: str, serial: int) -> LedgerEntry:
    """Enter the next generation of the published day: the read and measured figures stay, the checkpoint changes."""
    ledger = Ledger(line)
    old = ledger.newest()
    assert old is not None
    grandparent = next((entry for entry in ledger.chain() if entry.reference == old.parent), None)
    trained = trained_entry(line, written, run, "migrate")
    changed = {name: getattr(trained, name) for name in trained.model_fields_set}
    changed |= {"day": old.day, "migrated_from": parent.checkpoint, "skipped": None}
    return ledger.enter(old.model_copy(update=changed), grandparent, serial)


def _manifest(config: Config, parent: Manifest, statistics: Statistics | None, attempt: str) -> Manifest:
    """Return the parent's manifest with the new configuration: what was trained is unchanged.

    `config.ingest` stays the parent's: it says how the day was read, and the audit reads it so again.
    """
    schema = config.log_schema
    changed = {
        "attempt": attempt,
        "parent": qualified(parent.checkpoint, parent.parent) if parent.parent else None,
        "rows_in_space": {name: parent.rows_in_space.get(name, 0) for name in schema.task_names},
        "config": declared(config) | {"ingest": parent.config["ingest"]},
        "schema_fingerprint": schema.fingerprint(),
        "statistics": statistics,
        "libraries": library_versions(),
        "migrated_from": parent.checkpoint,
        "files": {},
        "cursor": None,
        "lanes": None,
    }
    return parent.model_copy(update=changed)


def _position_files(job: MigrateJob) -> dict[str, bytes]:
    """Return cursor and lanes of the parent as files, with the rows in space of the new tasks."""
    place = job.line.place(job.parent)
    parent = read_manifest(*place, job.parent)
    assert parent is not None
    cursor = replace(read_cursor(*place, parent), in_space=list(job.manifest.rows_in_space.values()))
    return {CURSOR: cursor.to_arrow(), LANES: lanes_to_arrow(read_lanes(*place, parent))}


@refuse_damage
def migrate_worker(job: MigrateJob, lane: DataIterator) -> dict[str, Any]:
    """Build the new model, inherit from the old one, and save; runs on every worker of Ray Train."""
    config, storage = job.config, job.line.storage
    old_place, old_name = job.line.place(job.parent)
    groups, device = begin_worker(config)
    for _ in read_segments(receive_blocks(lane, config.ingest.prefetch_units)):
        raise AssertionError("a migration reads no rows")
    state = build_state(config, groups.training, device)
    inherit(state, job.old, Declared.by(config), old_place, old_name, groups.saving)
    manifest = job.manifest.model_copy(update={"sharding": table_shardings(state.model)})
    holds = functools.partial(job.line.check_holder, manifest.attempt)
    is_first = groups.saving.rank() == 0
    files = vocabulary_files(_vocabularies(job)) | _position_files(job) if is_first else {}
    try:
        mine = manifest if is_first else None
        write_checkpoint(state.tensors(), storage, job.name, mine, groups.saving, holds, files)
    except DataError as error:  # on all ranks: the line was taken over
        return {"refused": str(error)}
    return {"refused": None}


def _vocabularies(job: MigrateJob) -> dict[str, Vocabulary]:
    """Return the old vocabularies of the kept tables; the others give out their rows from the next day on."""
    schema = job.config.log_schema
    kept = kept_tables(job.old, Declared.by(job.config))
    of_kept = schema.model_copy(update={"tables": [table for table in schema.tables if table.name in kept]})
    found = read_vocabularies(*job.line.place(job.parent), of_kept)
    tables = [table for table in schema.tables if table.name in schema.vocabularies]
    return {table.name: found.get(table.name) or Vocabulary.empty(table) for table in tables}
