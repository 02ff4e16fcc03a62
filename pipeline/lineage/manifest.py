"""What a checkpoint says of itself: enough to restore it, to refuse it, and to know years later what it was."""

import importlib.metadata
from typing import Any

from features.statistics import Statistics
from pipeline.config.project import Config
from pipeline.ingest.cursor import DayCursor
from pipeline.ingest.parts import Part
from pipeline.ingest.plan import Header
from pipeline.lineage.stored_checkpoint import FORMAT

_LIBRARIES = ("torch", "torchrec", "ray", "pyarrow", "numpy")


def declared(config: Config) -> dict[str, Any]:
    """A configuration as manifests have it."""
    return config.model_dump(mode="json", by_alias=True)


def describe(
    config: Config, statistics: Statistics | None, header: Header, part: Part, cursor: DayCursor
) -> dict[str, Any]:
    """The part of a manifest that follows from what was trained.

    Args:
        config: The project's configuration.
        statistics: Frozen along the line.
        header: Of the segment that is being trained.
        part: What the segment reads.
        cursor: What the model has seen of it.
    """
    schema = config.log_schema
    return {
        "format": FORMAT,
        "day": part.day,
        "log_day": part.log.day,
        "tasks": None if part.tasks is None else sorted(part.tasks),
        "pass": header.pass_index,
        "cursor": cursor.to_json(part.log.units),
        "lanes": [[part.log.units[index].key for index in lane] for lane in header.lanes],
        "rows": cursor.num_rows,
        "held_out": cursor.held_out,
        "rows_in_space": dict(zip(schema.task_names, cursor.in_space, strict=bool(cursor.in_space))),
        "files_of_log": part.log.files,
        "config": declared(config),
        "schema_fingerprint": schema.fingerprint(),
        "statistics": statistics.model_dump(mode="json") if statistics else None,
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }
