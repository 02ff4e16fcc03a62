"""Manifests of training: the configuration in its stored form, and the fields that follow from the trained rows."""

import importlib.metadata
from typing import Any

from features.statistics import Statistics
from pipeline.config.project import Config
from pipeline.ingest.cursor import StoredCursor, lanes_to_arrow
from pipeline.ingest.deal import Lanes
from pipeline.ingest.parts import Part
from pipeline.ingest.plan import Header
from pipeline.lineage.records import AuditFigures
from pipeline.lineage.stored_checkpoint import CURSOR, LANES

_LIBRARIES = ("torch", "torchrec", "ray", "pyarrow", "numpy")


def declared(config: Config) -> dict[str, Any]:
    """Return a configuration as manifests have it: without the tracker, on which nothing of a model depends."""
    return config.model_dump(mode="json", by_alias=True, exclude={"tracking"})


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that a checkpoint depends on."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def trained_fields(
    config: Config, statistics: Statistics | None, header: Header, part: Part, cursor: StoredCursor
) -> dict[str, Any]:
    """Return the fields of a `Manifest` that follow from the trained rows.

    Args:
        config: The project's configuration.
        statistics: Statistics that are frozen along the line.
        header: Header of the segment that is being trained.
        part: Part that the segment reads.
        cursor: Rows of the part that the model has seen.
    """
    schema, audit = config.log_schema, AuditFigures.of(cursor)
    return {
        "day": part.day,
        "log_day": part.log.day,
        "tasks": None if part.tasks is None else tuple(sorted(part.tasks)),
        "pass_index": header.pass_index,
        "rows": audit.rows,
        "held_out": cursor.held_out,
        "rows_in_space": dict(zip(schema.task_names, cursor.in_space, strict=bool(cursor.in_space))),
        "audit": audit,
        "files_of_log": dict(part.log.files),
        "day_files": "all",
        "config": declared(config),
        "schema_fingerprint": schema.fingerprint(),
        "statistics": statistics,
        "libraries": library_versions(),
    }


def position_files(part: Part, lanes: Lanes, cursor: StoredCursor) -> dict[str, bytes]:
    """Return cursor and lanes as the files of a checkpoint, by name.

    Args:
        part: Part that is being trained.
        lanes: Indices of its units, per rank.
        cursor: Rows of the part that the model has seen.
    """
    keys = part.log.units.keys()
    return {CURSOR: cursor.to_arrow(), LANES: lanes_to_arrow([[keys[index] for index in lane] for lane in lanes])}
