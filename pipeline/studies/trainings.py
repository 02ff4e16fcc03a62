"""Many trainings of one project, each on a line of its own, measured once; only missing ones are run.

Below ROOT/FOLDER, a training continues after an interruption, and a measurement is kept with its inputs, so a restarted
command does the rest.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config.project import Config
from pipeline.evaluation.evaluate import Measurement, Subject, listed_days, measure_together
from pipeline.ingest.parts import late_days, whole_days
from pipeline.ingest.units import check_days
from pipeline.lineage.day_entry import parts_of_run
from pipeline.lineage.frozen_statistics import STATISTICS
from pipeline.lineage.line import Line
from pipeline.lineage.log_form import check_ids
from pipeline.lineage.manifest import declared
from pipeline.log_passes.statistics import collect_statistics
from pipeline.storage.files import Storage
from pipeline.storage.kept_results import KeptResults
from pipeline.storage.sealed_json import seal
from pipeline.studies.candidates import head_parameters
from pipeline.trainer.train_line import train_together

logger = logging.getLogger(__name__)

_ELSEWHERE = ("name", "root", "line", "checkpoint", "evaluation", "daily", "ray")  # no bit of a model depends on them


@dataclass(frozen=True, slots=True)
class Variant:
    """One training.

    Args:
        name: Name of its line, to which a digest of all its inputs is added.
        config: Configuration with the features of the others, and their tasks or some of them.
        days: ISO dates in order.
        passes: Number of passes over them.
    """

    name: str
    config: Config
    days: tuple[str, ...]
    passes: int = 1


@dataclass(frozen=True, slots=True)
class _Work:
    config: Config
    days: tuple[str, ...]
    passes: int
    inputs: dict[str, Any]

    @property
    def line(self) -> str:
        return self.config.line

    @property
    def place(self) -> Line:
        return Line.of(self.config.root, self.config.line)


class Trainings:
    """Training and measurement of variants of a configuration.

    Args:
        config: Configuration whose features and logs all variants share.
        folder: Folder below the root.
        keep_checkpoints: True to keep a line after it has been measured.
    """

    def __init__(self, config: Config, folder: str, *, keep_checkpoints: bool) -> None:
        self._config, self._keep = config, keep_checkpoints
        self.storage = Storage(config.root).under(folder)
        self._steps = KeptResults(self.storage, "results")

    def measured(self, variants: Sequence[Variant], test_days: Sequence[str]) -> list[dict[str, Any]]:
        """Train variants and measure them together, unless it has been done; within a Ray session.

        Args:
            variants: Variants of the configuration.
            test_days: ISO dates, measured together.

        Returns:
            For each variant: the result of `evaluate` for its `tasks`; `rows` trained and their `seconds`, start-up
            left out; `parameters` of network and towers; mean and deviation of each expert's weight by module of gates.

        Raises:
            DataError: The logs do not fit the configuration.
        """
        works = [self.work_of(variant, test_days) for variant in variants]
        results: dict[str, Any] = {work.line: self._steps.found(work.line, work.inputs) for work in works}
        missing = list({work.line: work for work in works if results[work.line] is None}.values())
        if missing:
            trained = self.trained(missing)
            pairs = zip(missing, trained, strict=True)
            subjects = [Subject(work.config, work.place, one["checkpoint"]) for work, one in pairs]
            for work, one, measurement in zip(missing, trained, self.measure(subjects, test_days), strict=True):
                results[work.line] = self._steps.keep(work.line, work.inputs, one | _figures(measurement))
        for work in works if not self._keep else ():  # not before the measurements are kept
            self.storage.remove(f"lines/{work.line}")  # the whole folder: a line without a checkpoint cannot continue
        return [results[work.line] for work in works]

    def work_of(self, variant: Variant, test_days: Sequence[str]) -> _Work:
        """Return the line of a variant, named after everything that its result depends on."""
        inputs = {key: part for key, part in declared(variant.config).items() if key not in _ELSEWHERE}
        inputs |= {"days": list(variant.days), "test": list(test_days)}
        inputs |= self._config.evaluation.asked
        if variant.passes > 1:
            inputs["passes"] = variant.passes
        line = f"{variant.name}-{_digest(inputs)}"
        checkpoint = variant.config.checkpoint.model_copy(update={"keep_days": None})  # figures come from all parts
        config = variant.config.model_copy(update={"root": self.storage.url, "line": line, "checkpoint": checkpoint})
        return _Work(config, variant.days, variant.passes, inputs)

    def trained(self, works: Sequence[_Work]) -> list[dict[str, Any]]:
        """Train lines with the same days and seed together, unless each line would read other rows."""
        for work in works:
            logger.info("%s: %d days, seed %d", work.line, len(work.days), work.config.seed)
            if work.place.newest() is None:
                self.fit_statistics(work.config, work.place, work.days)
        schema, checkpoints = self._config.log_schema, {}
        alone = bool(schema.vocabularies or late_days(schema, works[0].days))
        for key, group in _grouped(works, alone=alone).items():
            read = group[0].config if alone else self._config.model_copy(update={"seed": key[1]})
            results = train_together(read, [work.config for work in group], group[0].days, group[0].passes)
            checkpoints |= {work.line: result["checkpoint"] for work, result in zip(group, results, strict=True)}
        return [trained_figures(work, checkpoints[work.line]) for work in works]

    def measure(self, subjects: Sequence[Subject], test_days: Sequence[str]) -> list[Measurement]:
        """Measure trained models together."""
        logger.info("measuring %d models on %s", len(subjects), ", ".join(test_days))
        logs = listed_days(self._config, test_days)
        for one in subjects:
            check_ids(one.config, one.line.read_manifest(one.checkpoint), logs)
        return measure_together(self._config, subjects, whole_days(logs))

    def fit_statistics(self, config: Config, line: Line, days: Sequence[str]) -> None:
        """Collect statistics of the training days once: all models have the same features."""
        schema, logs = self._config.log_schema, Storage(config.logs.path)
        inputs = {"features": declared(self._config)["schema"]["features"], "days": list(days), "logs": logs.url}

        def collect() -> dict[str, Any]:
            columns = schema.columns()
            found = check_days(logs, days, config.ingest.unit.max_rows, schema, columns)
            return collect_statistics(logs, schema, columns, found, config.ingest).model_dump(mode="json")

        common = self._steps.done(f"statistics-{_digest(inputs)}", inputs, collect)
        own = common | {"schema_fingerprint": config.log_schema.fingerprint()}
        line.storage.write(STATISTICS, seal(own))


def _grouped(works: Sequence[_Work], *, alone: bool) -> dict[tuple[Any, ...], list[_Work]]:
    """Group by days, passes and seed, and by line if each is trained alone."""
    groups: dict[tuple[Any, ...], list[_Work]] = {}
    for work in works:
        key = (work.days, work.config.seed, work.passes, work.line if alone else None)
        groups.setdefault(key, []).append(work)
    return groups


def trained_figures(work: _Work, checkpoint: str) -> dict[str, Any]:
    """Return the figures of a training, from the manifests of its parts."""
    manifest = work.place.read_manifest(checkpoint)
    assert manifest is not None
    parts = list(parts_of_run(work.place, manifest))
    return {
        "checkpoint": checkpoint,
        "rows": sum(part.rows for part in parts),
        "seconds": sum(part.seconds for part in parts),
        "parameters": head_parameters(work.config),
    }


def _figures(measurement: Measurement) -> dict[str, Any]:
    use = {
        module: {"mean": means, "deviation": measurement.expert_use_deviation[module]}
        for module, means in measurement.expert_use.items()
    }
    return {"tasks": measurement.tasks, "expert_use": use}


def _digest(inputs: Any) -> str:
    return hashlib.blake2b(json.dumps(inputs, sort_keys=True).encode(), digest_size=6).hexdigest()
