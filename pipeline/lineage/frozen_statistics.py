"""The statistics of a line, fitted once and frozen along it."""

from features.encoding import check_statistics
from features.errors import ConfigError
from features.statistics import Statistics
from pipeline.config.project import Config
from pipeline.lineage.line import Line
from pipeline.storage.sealed_json import unseal

STATISTICS = "statistics.json"


def load_statistics(config: Config, line: Line) -> Statistics | None:
    """Return the line's statistics, as `jobs.fit_features` wrote them; None if the schema needs none.

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
