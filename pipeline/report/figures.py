"""Long tables of a command: in a file below ROOT/reports, which the command's JSON line names."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from features.holdout import Rows
from pipeline.evaluation.table import metric_of
from pipeline.ingest.chosen_days import span
from pipeline.storage.files import Storage


def write_figures(root: str, name: str, figures: Any) -> str:
    """Write figures as JSON; a file of the same name is replaced.

    Args:
        root: The project's root.
        name: Name of the file below ROOT/reports, without its ending.
        figures: Contents of the file.

    Returns:
        The file's place.
    """
    storage = Storage(root).under("reports")
    storage.write(f"{name}.json", (json.dumps(figures, indent=1) + "\n").encode())
    return f"{storage.url}/{name}.json"


def report_evaluation(root: str, line: str, result: dict[str, Any], rows: Rows = "all") -> dict[str, Any]:
    """Write all metrics of an evaluation; return the result with one metric of each task instead.

    Args:
        root: The project's root.
        line: Name of the evaluated line.
        result: Result of `pipeline.evaluation.evaluate.evaluate`.
        rows: The evaluated rows, part of the file's name.

    Returns:
        The result, in which `tasks` has by task its rows and the metric that its kind is judged by, and `figures` has
        the place of all metrics.
    """
    days, checkpoint = result["days"], result["checkpoint"].removeprefix("checkpoints/").replace("/", "-")
    name = f"evaluate/{line}/{_file_part(days)}_{checkpoint.replace(':', '-')}_{rows}"
    tasks = {entry["task"]: _judged(entry) for entry in result["tasks"]}
    return result | {"tasks": tasks, "figures": write_figures(root, name, result)}


def _file_part(days: Sequence[str]) -> str:
    """Return a short name of days for a file: the first and the last, and a mark of the others if there is a gap."""
    said = span(days)
    gap = f"_{len(days)}-days-{hashlib.sha256(said.encode()).hexdigest()[:8]}" if "," in said else ""
    return f"{days[0]}_{days[-1]}{gap}"


def _judged(entry: dict[str, Any]) -> dict[str, Any]:
    metric = metric_of(entry["kind"])
    return {"rows": entry["model"]["rows"], metric: entry["model"].get(metric)}


def first_units(reasons: dict[str, str], most: int = 10) -> dict[str, Any]:
    """Return the number of quarantined units, and the reasons of the first: the ledger has those of all."""
    return {"num_quarantined": len(reasons), "quarantined": dict(sorted(reasons.items())[:most])}


def without_tables(root: str, name: str, result: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Write a command's whole result; return it without some of its keys, and with the file's place as `figures`."""
    short = {key: value for key, value in result.items() if key not in keys}
    return short | {"figures": write_figures(root, name, result)}
