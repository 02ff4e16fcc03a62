"""Tables of an evaluation: per task the model beside popularity and the best, within groups, and by slices."""

from collections.abc import Sequence
from typing import Any

_COLUMNS = ("task", "rows in space", "metric", "model", "popularity", "best", "share of the gap", "calibration")


def metrics_table(result: dict[str, Any]) -> str:
    """Format an evaluation.

    Args:
        result: Result of `pipeline.evaluation.evaluate.evaluate`.

    Returns:
        Lines of equal columns, with a note for undefined metrics (no positives, no rows).
    """
    tasks = result["tasks"]
    tables = [_aligned([_COLUMNS, *(_row(entry) for entry in tasks)])]
    grouped = [entry for entry in tasks if "gauc" in entry["model"]]
    if grouped:
        tables.append(_aligned(_grouped_rows(grouped)))
    slices = next((entry["slices"] for entry in tasks if "slices" in entry), {})
    tables += [_aligned(_slice_rows(name, tasks)) for name in slices]
    return "\n\n".join(tables)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Format rows as columns of equal width, with a line below the first row; the first column and words are left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = [place == 0 or not any(row[place][:1].isdigit() for row in rows) for place in range(len(widths))]
    lines = [
        "  ".join(
            cell.ljust(width) if is_left else cell.rjust(width) for cell, width, is_left in zip(*one, strict=True)
        )
        for one in ((row, widths, left) for row in rows)
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _grouped_rows(entries: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return the rows of the table of metrics within users or requests."""
    names = [name for name in entries[0]["model"] if name == "gauc" or "@" in name]
    header = ["within groups", *(name.upper().replace("_", " ") for name in names), "groups", "one class"]
    rows = []
    for entry in entries:
        model = entry["model"]
        counts = [f"{model[name]:,}" for name in ("gauc_groups", "one_class_groups")]
        rows.append([entry["task"], *(_number(model[name], known=True) for name in names), *counts])
    return [header, *rows]


def _slice_rows(name: str, entries: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return the rows of the table of one declared slice: its values, and each task's rows and main metric."""
    header = [f"by {name}"]
    for entry in entries:
        header += [f"rows {entry['task']}", f"{entry['task']} {metric_of(entry['kind']).upper()}"]
    rows = []
    for values in zip(*(entry["slices"][name] for entry in entries), strict=True):
        row = [values[0]["value"]]
        for entry, value in zip(entries, values, strict=True):
            row += [f"{value['rows']:,}", _number(value.get(metric_of(entry["kind"])), known=True)]
        rows.append(row)
    return [header, *rows]


def metric_of(kind: str) -> str:
    """Return the main metric of a kind of task."""
    return {"binary": "auc", "regression": "mse", "multiclass": "accuracy"}[kind]


def share_of_gap(entry: dict[str, Any]) -> float | None:
    """Return the model's place between popularity (0) and the best reachable (1); None if one of them is unknown."""
    metric = metric_of(entry["kind"])
    model, popularity, best = (entry[name].get(metric) for name in ("model", "popularity", "truth"))
    if model is None or popularity is None or best is None or best == popularity:
        return None
    return (model - popularity) / (best - popularity)


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    metric = metric_of(entry["kind"])
    model = entry["model"]
    share = share_of_gap(entry)
    return (
        entry["task"],
        f"{model['rows']:,}",
        metric.upper(),
        _number(model.get(metric), known=True) + _interval(entry.get("interval")),
        _number(entry["popularity"].get(metric), known=bool(entry["popularity"]["rows"])),
        _number(entry["truth"].get(metric), known=bool(entry["truth"]["rows"])),
        "-" if share is None else f"{share:.2f}",
        _number(model.get("calibration"), known=True, digits=3),
    )


def _number(value: float | None, *, known: bool, digits: int = 4) -> str:
    if not known:
        return "-"
    return "undefined" if value is None else f"{value:.{digits}f}"


def _interval(interval: dict[str, Any] | None) -> str:
    if interval is None:
        return ""
    return " [-]" if interval["low"] is None else f" [{interval['low']:.4f}, {interval['high']:.4f}]"
