"""Heavy parts of a day, as an interface for the daily job, and their implementation on Ray."""

import contextlib
import logging
from collections.abc import Sequence
from typing import Protocol

from features.holdout import Rows
from features.profile import DayProfile
from pipeline.cluster.session import ray_session
from pipeline.config.project import Config
from pipeline.evaluation.evaluate import Measurement, measure
from pipeline.ingest.datasource import read_columns
from pipeline.ingest.units import DayLog
from pipeline.lineage.line import Line
from pipeline.lineage.stored_checkpoint import Manifest
from pipeline.log_passes.reduce_units import reduce_units
from pipeline.log_passes.unit_work import ProfileUnit, merge_into
from pipeline.storage.files import Storage
from pipeline.trainer.train_days import HeldLine, parts_to_train, train_days

logger = logging.getLogger(__name__)


class Work(Protocol):
    """The heavy parts of a day."""

    def logs(self, day: str) -> dict[str, DayLog]:
        """Return the units of a day, and of the earlier days whose late labels are trained with it."""
        ...

    def has_success_marker(self, day: str) -> bool:
        """Return True if the writer of the day's log has marked it complete."""
        ...

    def profile(self, log: DayLog) -> DayProfile:
        """Return the profile of the day's log."""
        ...

    def measure(self, checkpoints: Sequence[str], day: str, rows: Rows) -> list[Measurement]:
        """Return metrics of checkpoints on the same rows of a day."""
        ...

    def train(self, day: str, run: str) -> Manifest:
        """Train a day to its end, from the published checkpoint, or from the interrupted training's."""
        ...


class RayWork:
    """Heavy parts on Ray: Ray Data reads, Ray Train's workers measure and train.

    Args:
        config: The project's configuration.
        line: The line.
        stack: Exit stack that ends the Ray of the first heavy part.
    """

    def __init__(self, config: Config, line: Line, stack: contextlib.ExitStack) -> None:
        self._config, self._line, self._stack = config, line, stack
        self._logs = Storage(config.logs.path)
        self._has_ray = False

    def _need_ray(self) -> None:
        """Start Ray, once: a day that is done or refused already needs none."""
        if not self._has_ray:
            self._stack.enter_context(ray_session(self._config))
            self._has_ray = True

    def logs(self, day: str) -> dict[str, DayLog]:
        """Return the units of a day, and of the earlier days whose late labels are trained with it."""
        return {
            part.log.day: part.log
            for part in parts_to_train(self._config, self._line, [day], self._config.evaluation.measured_columns)
        }

    def has_success_marker(self, day: str) -> bool:
        """Return True if the writer of the day's log has marked it complete."""
        return self._logs.exists(f"dt={day}/_SUCCESS")

    def profile(self, log: DayLog) -> DayProfile:
        """Return the profile of the day's log, in one pass of data tasks over it."""
        self._need_ray()
        schema, holdout = self._config.log_schema, self._config.holdout
        total, pass_over_bad = DayProfile(), self._config.ingest.on_bad_unit != "fail"
        columns = tuple(read_columns(schema.columns(), holdout))
        work = ProfileUnit(self._logs, schema, columns, pass_over_bad, holdout)
        for part in reduce_units([log], work, merge_into, self._config.ingest):
            for error in part.errors:
                logger.warning("not looked at: %s", error)
            if part.merged is not None:
                total.merge(part.merged)
        return total

    def measure(self, checkpoints: Sequence[str], day: str, rows: Rows) -> list[Measurement]:
        """Return metrics of checkpoints on the same rows of a day."""
        self._need_ray()
        return measure(
            self._config,
            self._line,
            checkpoints,
            parts_to_train(self._config, self._line, [day], self._config.evaluation.measured_columns),
            rows,
        )

    def train(self, day: str, run: str) -> Manifest:
        """Train a day to its end, from the published checkpoint, or from the interrupted training's."""
        self._need_ray()
        held = HeldLine(self._config, self._line, run, form_accepted=True)  # preflight has compared it
        return train_days(self._config, [held], [day], 1)[0][0]
