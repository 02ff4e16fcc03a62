"""Many trainings of one project, each on a line of its own, measured once; only what is missing is run.

Below ROOT/FOLDER: a training goes on where it was cut off, and a measurement is kept with what it was made from, so
whoever is started again does what is left.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any

from pipeline.comparison.candidates import head_parameters
from pipeline.config import Config
from pipeline.evaluation.evaluate import measure_days
from pipeline.fit import collect_statistics
from pipeline.lineage.line import Line
from pipeline.lineage.manifest import declared
from pipeline.lineage.seal import seal
from pipeline.lineage.steps import Steps
from pipeline.run import STATISTICS, of_run, train
from pipeline.storage import Storage
from pipeline.units import check_days

logger = logging.getLogger(__name__)

_ELSEWHERE = ("name", "root", "line", "checkpoint", "evaluation", "daily", "ray")  # they change no bit of a model


class Trainings:
    """Trains and measures variants of a configuration.

    Args:
        config: Whose features and logs all of them share.
        folder: Below the root.
        keep_checkpoints: Otherwise a line's are removed once it has been measured.
    """

    def __init__(self, config: Config, folder: str, *, keep_checkpoints: bool) -> None:
        self._config, self._keep = config, keep_checkpoints
        self.storage = Storage(config.root).under(folder)
        self._steps = Steps(self.storage, "results")

    def measured(self, name: str, config: Config, days: Sequence[str], test_days: Sequence[str]) -> dict[str, Any]:
        """Train one variant and measure it, or find that it has been; within a Ray session.

        Args:
            name: Of its line, to which a digest of all that it is made from is added.
            config: The variant.
            days: ISO dates in order, trained in one pass.
            test_days: ISO dates, measured together.

        Returns:
            What `evaluate` says of its `tasks`; `rows` trained and `seconds` of that, start-up left out; `parameters`
            of network and towers; by module of gates the mean and deviation of each expert's weight.

        Raises:
            DataError: The logs do not fit the configuration.
        """
        inputs = {key: part for key, part in declared(config).items() if key not in _ELSEWHERE}
        inputs |= {"days": list(days), "test": list(test_days)}
        on_line = config.model_copy(update={"root": self.storage.url, "line": f"{name}-{_digest(inputs)}"})
        found = self._steps.done(on_line.line, inputs, lambda: self._trained(on_line, days, test_days))
        if not self._keep:  # not before the measurement is kept
            Line.of(on_line.root, on_line.line).storage.remove("checkpoints")
        return found

    def _trained(self, config: Config, days: Sequence[str], test_days: Sequence[str]) -> dict[str, Any]:
        logger.info("%s: %d days, seed %d", config.line, len(days), config.seed)
        line = Line.of(config.root, config.line)
        if line.newest() is None:
            self._fit(config, line, days)
        trained = train(config, days, passes=1)
        manifest = line.read_manifest(trained["checkpoint"])
        assert manifest is not None
        parts = list(of_run(line, manifest))
        measured = measure_days(config, line, trained["checkpoint"], test_days)
        return {
            "tasks": measured.tasks,
            "rows": sum(part.content["rows"] for part in parts),
            "seconds": sum(part.content["seconds"] for part in parts),
            "parameters": head_parameters(config),
            "expert_use": {
                module: {"mean": means, "deviation": measured.expert_use_deviation[module]}
                for module, means in measured.expert_use.items()
            },
        }

    def _fit(self, config: Config, line: Line, days: Sequence[str]) -> None:
        """Statistics of the training days: features are the same for all models, so they are collected once."""
        schema, logs = self._config.log_schema, Storage(config.logs.path)
        inputs = {"features": declared(self._config)["schema"]["features"], "days": list(days), "logs": logs.url}

        def collect() -> dict[str, Any]:
            columns = schema.columns()
            found = check_days(logs, days, config.ingest.unit.max_rows, schema, columns)
            return collect_statistics(logs, schema, columns, found).model_dump(mode="json")

        common = self._steps.done(f"statistics-{_digest(inputs)}", inputs, collect)
        own = common | {"schema_fingerprint": config.log_schema.fingerprint()}
        line.storage.write(STATISTICS, seal(own))


def _digest(inputs: Any) -> str:
    return hashlib.blake2b(json.dumps(inputs, sort_keys=True).encode(), digest_size=6).hexdigest()
