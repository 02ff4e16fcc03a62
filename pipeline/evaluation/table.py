"""Table of an evaluation: per task the model, beside popularity and the best reachable figures."""

from typing import Any

_COLUMNS = ("task", "rows in space", "metric", "model", "popularity", "best", "share of the gap", "calibration")


def metrics_table(result: dict[str, Any]) -> str:
    """Format an evaluation.

    Args:
        result: Result of `pipeline.evaluation.evaluate.evaluate`.

    Returns:
        Lines of equal columns, with a note for undefined metrics (no positives, no rows).
    """
    rows = [_COLUMNS, *(_row(entry) for entry in result["tasks"])]
    widths = [max(len(row[place]) for row in rows) for place in range(len(_COLUMNS))]
    lines = [
        "  ".join(_pad(cell, width, place) for place, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


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


def _pad(cell: str, width: int, place: int) -> str:
    return cell.ljust(width) if place in (0, 2) else cell.rjust(width)
