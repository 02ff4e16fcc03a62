"""Checkpoint to measure: its choice, the check that it is intact, and its encoder of rows."""

from features.encoding import Encoder
from features.errors import ConfigError
from pipeline.config.project import Config
from pipeline.lineage.line import Line
from pipeline.lineage.records import Manifest
from pipeline.log_passes.admission import read_vocabularies


def published(line: Line) -> str:
    """Return the newest published checkpoint.

    Raises:
        ConfigError: No checkpoint is published.
    """
    latest = line.latest()
    if latest is None:
        raise ConfigError(f"{line.storage.url} has nothing published: train first, or name a checkpoint")
    return latest.checkpoint


def encoder_of(config: Config, line: Line, manifest: Manifest, *, with_truth: bool = True) -> Encoder:
    """Return an encoder of rows for measuring a checkpoint, equal to that of its training.

    Args:
        config: Configuration with the checkpoint's features, and at least its tasks.
        line: Line of the checkpoint.
        manifest: Manifest of the checkpoint.
        with_truth: True to read the tasks' truth columns too.
    """
    schema = config.log_schema
    return Encoder(
        schema,
        manifest.statistics,
        with_truth=with_truth,
        measuring=True,
        vocabularies=read_vocabularies(*line.place(manifest.checkpoint), schema),
        measured=config.evaluation.measured_columns,
    )
