"""The checkpoint that is measured: which one, whether it is intact, and what encodes rows for it."""

from features.encoding import Encoder
from features.errors import ConfigError, DataError
from features.statistics import Statistics
from pipeline.config.project import Config
from pipeline.lineage.line import Line
from pipeline.lineage.stored_checkpoint import Manifest
from pipeline.log_passes.admission import read_vocabularies


def published(line: Line) -> str:
    """The newest published checkpoint.

    Raises:
        ConfigError: There is none.
    """
    latest = line.latest()
    if latest is None:
        raise ConfigError(f"{line.storage.url} has nothing published: train first, or name a checkpoint")
    return str(latest["checkpoint"])


def complete_manifest(line: Line, checkpoint: str) -> Manifest:
    """The manifest of a checkpoint that is there and intact.

    Raises:
        ConfigError: There is no such checkpoint.
        DataError: Its files are not what the manifest says.
    """
    manifest = line.read_manifest(checkpoint)
    if manifest is None:
        raise ConfigError(f"{line.storage.url}/{checkpoint} has no intact manifest: it is no complete checkpoint")
    problem = line.damage(manifest)
    if problem is not None:
        raise DataError(f"{line.storage.url}/{checkpoint} is damaged: {problem}")
    return manifest


def encoder_of(config: Config, line: Line, manifest: Manifest) -> Encoder:
    """What encodes rows as it did for the training of a checkpoint, for measuring it.

    Args:
        config: Whose features are those of the checkpoint, and whose tasks are at least its.
        line: Where the checkpoint is.
        manifest: Of the checkpoint.
    """
    schema = config.log_schema
    known = read_vocabularies(*line.place(manifest.checkpoint), schema)
    frozen = manifest.content["statistics"]
    statistics = Statistics.model_validate(frozen) if frozen else None
    return Encoder(schema, statistics, with_truth=True, measuring=True, vocabularies=known)
