"""A training run as the command sees it: check all that can be checked, start Ray, train, say what came out."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from features.encoding import Encoder, check_statistics
from features.errors import ConfigError, DataError, Interrupted
from features.statistics import Statistics
from pipeline.admission import Admission, admit, read_vocabularies
from pipeline.config import Config
from pipeline.datasource import read_columns
from pipeline.failures import RunFailed
from pipeline.lineage.lease import lease
from pipeline.lineage.ledger import Ledger, config_hash
from pipeline.lineage.line import Line, Manifest
from pipeline.lineage.manifest import declared
from pipeline.lineage.seal import unseal
from pipeline.lineage.start import Beginning, ends_day, is_last, start_of
from pipeline.parts import late_days, parts_of
from pipeline.progress import ProgressBoard
from pipeline.session import ray_session, run_workers
from pipeline.storage import Storage
from pipeline.stream import Part, RunPlan
from pipeline.train import train_worker
from pipeline.train_job import TrainJob
from pipeline.units import check_days

STATISTICS = "statistics.json"


def load_statistics(config: Config, line: Line) -> Statistics | None:
    """The line's statistics, as `jobs.fit_features` wrote them; None where the schema needs none.

    Raises:
        ConfigError: They are missing, or were made for another schema.
    """
    schema = config.log_schema
    try:
        statistics = Statistics.model_validate(unseal(line.storage.read(STATISTICS)))
    except ValueError as error:
        raise ConfigError(
            f"{line.storage.url}/{STATISTICS} is damaged ({' '.join(str(error).split())}): restore it, or run "
            "jobs.fit_features again if the line has no checkpoints"
        ) from error
    except FileNotFoundError:
        try:
            check_statistics(schema, None)
        except ConfigError as error:
            raise ConfigError(f"{line.storage.url}/{STATISTICS} is missing: {error}") from error
        return None
    if statistics.schema_fingerprint != schema.fingerprint():
        raise ConfigError(
            f"{line.storage.url}/{STATISTICS} was made for schema {statistics.schema_fingerprint}, the config has "
            f"{schema.fingerprint()}: run jobs.fit_features again, on a new root or line if this one has checkpoints"
        )
    return statistics


def train(config: Config, days: Sequence[str], passes: int) -> dict[str, Any]:
    """Train days, from where the line is, and publish them without a gate.

    Args:
        config: The project's configuration.
        days: ISO dates in order.
        passes: Passes over all of them.

    Returns:
        The figures of the command's JSON line.

    Raises:
        ConfigError: The configuration cannot be carried out.
        DataError: The logs, or what the line has trained already, do not fit; or another job holds the line.
        Interrupted: SIGTERM came; the workers have saved where they were.
    """
    line = Line.of(config.root, config.line)
    start = start_of(declared(config), line, days, passes)
    latest = line.latest()
    if (
        start is not None
        and latest is not None
        and start.checkpoint == latest["checkpoint"]
        and latest["day"] == days[-1]
    ):
        return {"result": "nothing to do", "checkpoint": start.checkpoint, "step": start.step}
    with lease(line, f"jobs.train {days[0]}..{days[-1]}", config.daily.lease_s) as run:
        serial = line.state()["serial"]
        finished, trained = train_days(config, line, days, passes, run)
        manifests = list(of_run(line, finished))
        parent = Ledger(line).newest()
        for manifest in reversed(manifests):
            if ends_day(manifest, passes):
                parent = Ledger(line).enter(described(line, manifest, run) | {"kind": "train"}, parent, serial)
        assert parent is not None
        line.publish(parent.content, serial, run)
    return {
        "result": "trained" if trained else "nothing to do",
        "checkpoint": finished.checkpoint,
        "step": finished.step,
        "rows": sum(manifest.content["rows"] for manifest in manifests),
        "quarantined": quarantined(manifests),
    }


def train_days(config: Config, line: Line, days: Sequence[str], passes: int, run: str) -> tuple[Manifest, bool]:
    """Train days to their end, publishing nothing.

    Args:
        config: The project's configuration.
        line: The line.
        days: ISO dates in order.
        passes: Passes over all of them.
        run: The run that holds the line.

    Returns:
        The last day's checkpoint, and whether anything was left to train.

    Raises:
        ConfigError: The configuration cannot be carried out.
        DataError: The logs, or what the line has trained already, do not fit.
        Interrupted: SIGTERM came; the workers have saved where they were.
    """
    start = start_of(declared(config), line, days, passes)
    if start is not None and is_last(start, days, passes):
        return start, False
    statistics = _frozen_statistics(config, line, start)
    logs = Storage(config.logs.path)
    parts = parts_to_train(config, line, days)
    trusted = start.checkpoint if start else None
    record = {"run": run, "passes": passes}
    begin = Beginning(declared(config), line, tuple(days), record, trusted)
    with ray_session(config):
        admission = _admission(config, line, start, {"days": list(days), "passes": passes}, parts)
        encoder = Encoder(config.log_schema, statistics, vocabularies=admission.vocabularies)
        plan = RunPlan(logs, parts, passes, encoder, config.ingest, config.seed, begin, config.holdout)
        board = ProgressBoard.remote()
        job = TrainJob(config, statistics, line, tuple(days), parts, passes, ray.put(admission), board)
        try:
            reported = run_workers(config, plan, train_worker, job, board)
        except BaseException as error:
            reason = " ".join(str(error).split())[:500]
            with contextlib.suppress(OSError, DataError):  # a storage that is away may be why
                line.end_attempts(days, run, {"result": "failed", "reason": reason})
            raise
    return _finished(line, days, record, reported), True


def _admission(
    config: Config, line: Line, start: Manifest | None, run: dict[str, Any], parts: Sequence[Part]
) -> Admission:
    """Which ids have which rows in this run: as its own checkpoint says, or yesterday's with the days' new ids."""
    logs = [part.log for part in parts if part.is_last]
    if start is None or not config.log_schema.vocabularies:
        return admit(config, {}, logs)
    known = read_vocabularies(*line.place(start.checkpoint), config.log_schema)
    if start.content["run"] == run:
        return Admission(known, None, start.content["new_ids"])
    return admit(config, known, logs)


def parts_to_train(config: Config, line: Line, days: Sequence[str]) -> tuple[Part, ...]:
    """What is read for days; of the late labels, those of days that the line has trained, or trains now.

    Raises:
        DataError: A log is missing, damaged, or has not the declared columns.
    """
    schema = config.log_schema
    late, known = late_days(schema, days), set(days)
    if late:
        known |= {entry.day for entry in Ledger(line).chain() if "skipped" not in entry.content}
    listed = sorted({*(day for day in late if day in known), *days})
    columns = read_columns(schema.columns(), config.holdout)
    found = check_days(Storage(config.logs.path), listed, config.ingest.unit.max_rows, schema, columns)
    return parts_of(schema, days, {log.day: log for log in found})


def _finished(line: Line, days: Sequence[str], record: dict[str, Any], reported: dict[str, Any]) -> Manifest:
    """Write down how the workers ended, and what they finished."""
    run = record["run"]
    if reported.get("refused"):
        line.end_attempts(days, run, {"result": "refused", "reason": reported["refused"]})
        raise DataError(reported["refused"])
    if reported.get("interrupted"):
        line.end_attempts(days, run, {"result": "interrupted"})
        raise Interrupted(
            f"stopped by SIGTERM at step {reported['step']}, saved as {reported['checkpoint']}: start the same command "
            "again to go on"
        )
    finished = line.read_manifest(reported["checkpoint"]) if reported.get("checkpoint") else line.newest()
    if finished is None or not is_last(finished, days, record["passes"]):
        raise RunFailed("the last day's checkpoint is gone or damaged: start the same command again")
    line.end_attempts(days, run, {"result": "done"})
    if reported["asked_to_stop"]:
        raise Interrupted(f"stopped by SIGTERM after {finished.day} was trained: start the same command again to go on")
    return finished


def of_run(line: Line, finished: Manifest) -> Iterator[Manifest]:
    """The finished parts of a run, the newest first."""
    return itertools.takewhile(lambda m: m.content["run"] == finished.content["run"], line.lineage(finished))


def quarantined(manifests: Sequence[Manifest]) -> dict[str, str]:
    """Units that could not be read, and why."""
    found = (manifest.content["cursor"]["quarantined"] for manifest in manifests)
    return {key: reason for units in found for key, reason in units.items()}


def described(line: Line, manifest: Manifest, run: str) -> dict[str, Any]:
    """What the ledger takes from a finished day's checkpoint, and from those of earlier days' late labels before it."""
    content = manifest.content
    sums = [int(total) for _, total in content["cursor"]["units"].values()]
    taken = (
        "rows",
        "held_out",
        "rows_in_space",
        "schema_fingerprint",
        "step",
        "days_done",
        "loss_weights",
        "pass",
        "new_ids",
    )
    return {key: content[key] for key in taken} | {
        "day": manifest.day,
        "checkpoint": manifest.checkpoint,
        "run": run,
        "attempt": content["attempt"],
        "logs": content["files_of_log"],
        "quarantined": content["cursor"]["quarantined"],
        "audit": {"units": len(sums), "rows": content["rows"], "sum": f"{sum(sums) % 2**64:016x}"},
        "config": config_hash(content["config"]),
        "train_seconds": content["seconds"],
        "late": {
            part.content["log_day"]: _late(part) for part in of_run(line, manifest) if _is_late(part, manifest.day)
        },
    }


def _is_late(part: Manifest, day: str) -> bool:
    return part.day == day and part.content["log_day"] != day


def _late(part: Manifest) -> dict[str, Any]:
    return {key: part.content[key] for key in ("tasks", "rows", "rows_in_space")} | {
        "logs": part.content["files_of_log"]
    }


def _frozen_statistics(config: Config, line: Line, start: Manifest | None) -> Statistics | None:
    if start is None:
        return load_statistics(config, line)
    frozen = start.content["statistics"]
    return Statistics.model_validate(frozen) if frozen else None
