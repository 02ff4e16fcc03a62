"""Checks of the ranking score against the tasks and columns that the configuration knows."""

import difflib
from collections.abc import Sequence

from features.errors import ConfigError
from features.schema import Schema
from models.ranking_score import LexicographicConfig, ProductConfig


def check_ranking(ranking: ProductConfig | LexicographicConfig, schema: Schema, columns: Sequence[str]) -> None:
    """Check that the tasks of a ranking score have a value to rank by, and that its columns exist.

    Args:
        ranking: The declared score.
        schema: The tasks.
        columns: Names of the columns that predictions may have as keys.

    Raises:
        ConfigError: A name is wrong, with its dotted path and the nearest valid one.
    """
    if isinstance(ranking, ProductConfig):
        for name in ranking.exponents:
            _check_task(f"ranking.exponents.{name}", name, schema)
        if ranking.duration is not None:
            _check_column("ranking.duration.column", ranking.duration.column, columns)
    else:
        for place, entry in enumerate(ranking.tasks):
            kind = _check_task(f"ranking.tasks.{place}.task", entry.task, schema)
            if entry.width is not None and kind != "binary":
                raise ConfigError(
                    f"ranking.tasks.{place}.width: task {entry.task!r} is {kind} and has no bounds of its own: declare "
                    "boundaries"
                )
    _check_column("ranking.top.by", ranking.top.by, columns)


def _check_task(path: str, name: str, schema: Schema) -> str:
    """Return the kind of a task that has one number to rank by."""
    task = next((task for task in schema.tasks if task.name == name), None)
    if task is None:
        raise ConfigError(f"{path}: there is no task {name!r}: {nearest(name, schema.task_names)}")
    if task.kind == "multiclass":
        raise ConfigError(f"{path}: task {name!r} is multiclass, its probabilities are no single value to rank by")
    if task.role == "auxiliary":
        raise ConfigError(f"{path}: task {name!r} is auxiliary and in no score: remove it, or declare role: main")
    return task.kind


def _check_column(path: str, name: str, columns: Sequence[str]) -> None:
    if name not in columns:
        raise ConfigError(f"{path}: there is no column {name!r}: {nearest(name, columns)}")


def nearest(name: str, known: Sequence[str]) -> str:
    """Return the known name that was probably meant, as a question, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(sorted(known)) or 'none'}"
