"""Comparison as tables and a page: Parquet for further work, Markdown for a review, HTML with its charts."""

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from itertools import combinations
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.evaluation.table import metric_of
from pipeline.ingest.chosen_days import span
from pipeline.report.svg import Point, bars, scatter
from pipeline.studies.comparison import ComparisonPlan, Outcome
from pipeline.studies.gains import ModelRow, Spread, collapsed, gate_use, metric
from pipeline.studies.verdicts import verdicts

_STYLE = """body{font:15px/1.5 sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#222}
.table{overflow-x:auto}table{border-collapse:collapse;margin:1em 0}
td,th{padding:.3em .7em;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left}code{font-size:12px}.charts{display:flex;flex-wrap:wrap;gap:1.5em}
.alarm{color:#a00}"""


def to_parquet(outcomes: Sequence[Outcome]) -> bytes:
    """Return one row per model, seed and task: the task's main metric, and calibration."""
    rows = [
        {
            "model": outcome.model,
            "seed": outcome.seed,
            "task": task["task"],
            "kind": task["kind"],
            "metric": metric_of(task["kind"]),
            "value": metric(outcome, task["task"]),
            "calibration": task["model"].get("calibration"),
            "rows": task["model"]["rows"],
            "parameters": outcome.parameters,
            "rows_per_s": outcome.rows_per_s,
        }
        for outcome in outcomes
        for task in outcome.tasks
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, _PARQUET), sink)
    return sink.getvalue()


_PARQUET = pa.schema(
    [
        ("model", pa.string()),
        ("seed", pa.int64()),
        ("task", pa.string()),
        ("kind", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("calibration", pa.float64()),
        ("rows", pa.int64()),
        ("parameters", pa.int64()),
        ("rows_per_s", pa.float64()),
    ]
)


def table_of(rows: Sequence[ModelRow], kinds: dict[str, str]) -> list[list[str]]:
    """Return cells, the head first: metrics with their spread, gains, size and rate.

    Args:
        rows: The models.
        kinds: Kind of each task, by name.
    """
    has_gains = any(row.gains for row in rows)
    head = ["model", *(f"{name} ({metric_of(kind).upper()})" for name, kind in kinds.items())]
    head += [f"gain {name}" for name in kinds] if has_gains else []
    cells = [[*head, "parameters", "rows/s"]]
    for row in rows:
        gains = [signed(row.gains[name]) if row.gains else "-" for name in kinds] if has_gains else []
        metrics = [str(row.metrics[name]) for name in kinds]
        cells.append([row.model, *metrics, *gains, f"{row.parameters:,}", f"{row.rows_per_s:,.0f}"])
    return cells


def markdown_table(cells: Sequence[Sequence[str]]) -> str:
    """Format cells, the head first, as Markdown."""
    head, *lines = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([head, f"|{'---|' * len(cells[0])}", *lines])


def signed(spread: Spread) -> str:
    """Format a mean with four digits and its sign, and its spread if known."""
    if spread.mean is None:
        return "undefined"
    return f"{spread.mean:+.4f}" + ("" if spread.deviation is None else f" ± {spread.deviation:.4f}")


def to_markdown(rows: Sequence[ModelRow], kinds: dict[str, str], plan: ComparisonPlan) -> str:
    """Format the table, the plan, and the verdicts."""
    lines = [f"# Comparison {plan.name}", "", _what(plan), "", markdown_table(table_of(rows, kinds))]
    lines += ["", *(f"* {text}" for text in verdicts(rows, plan.least_gain).values()), ""]
    lines += [f"* {row.model}: `{row.setting}`" for row in rows]
    return "\n".join(lines) + "\n"


def to_html(outcomes: Sequence[Outcome], rows: Sequence[ModelRow], kinds: dict[str, str], plan: ComparisonPlan) -> str:
    """Format the page: table, verdicts, the seesaw and the use of experts."""
    parts = [
        f"<h1>Comparison {escape(plan.name)}</h1><p>{escape(_what(plan))}</p>",
        _table(table_of(rows, kinds)),
        f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in verdicts(rows, plan.least_gain).values())}</ul>",
        _seesaw(rows, list(kinds)),
        _expert_use(outcomes),
        "<h2>Settings</h2>",
        "".join(f"<p>{escape(row.model)}: <code>{escape(str(row.setting))}</code></p>" for row in rows),
        f"<p>Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.</p>",
    ]
    title = f"<title>Comparison {escape(plan.name)}</title>"
    head = f'<meta charset="utf-8">{title}<style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _what(plan: ComparisonPlan) -> str:
    seeds = "1 seed" if plan.seeds == 1 else f"{plan.seeds} seeds, mean ± standard deviation"
    text = (
        f"Trained on {span(plan.train_days)} in {passes_of(plan)}, on the same rows in the same order; measured on "
        f"{span(plan.test_days)}, each task in its own sample space; {seeds}. "
    )
    if plan.trials > 1:
        text += (
            f"Sizes: the best of {plan.trials} by the mean quality of the main tasks on {span(plan.choose_days)}, "
            "trained on the days before. "
        )
    return text + (
        "A gain is the model's metric less the single-task model's with the same seed (for MSE the other way round). "
        "Parameters are of network and towers; of single-task models, of each of them, which also have tables of their "
        "own."
    )


def passes_of(plan: ComparisonPlan) -> str:
    """Format the number of passes."""
    return "one pass" if plan.passes == 1 else f"{plan.passes} passes"


def _table(cells: Sequence[Sequence[str]]) -> str:
    head, *rows = cells
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return f"<div class='table'><table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table></div>"


def _seesaw(rows: Sequence[ModelRow], tasks: Sequence[str]) -> str:
    """Draw the gain of one task against the gain of another, for every pair of tasks."""
    charts = []
    for a, b in combinations(tasks, 2):
        points = [_point(row, a, b) for row in rows if row.gains is not None]
        known = [point for point in points if point is not None]
        if known:
            names = ("both gain", f"seesaw: {b} gains", "both lose", f"seesaw: {a} gains")
            charts.append(scatter(known, f"gain of {a}", f"gain of {b}", names))
    if not charts:
        return ""
    return f'<h2>The seesaw</h2><p>Gains over the single-task models.</p><div class="charts">{"".join(charts)}</div>'


def _point(row: ModelRow, a: str, b: str) -> Point | None:
    assert row.gains is not None
    x, y = row.gains[a], row.gains[b]
    if x.mean is None or y.mean is None:
        return None
    return Point(row.model, x.mean, y.mean, x.deviation or 0.0, y.deviation or 0.0)


def _expert_use(outcomes: Sequence[Outcome]) -> str:
    """Draw mean and deviation of every gate's weights, for each model's first seed."""
    first = {outcome.model: outcome for outcome in reversed(outcomes) if outcome.expert_use}
    parts = []
    for outcome in reversed(first.values()):
        alarms = "".join(f'<p class="alarm">Collapsed: {escape(text)}</p>' for text in collapsed(outcome))
        charts = [bars(used.gate, used.experts, used.means, used.deviations) for used in gate_use(outcome)]
        title = f"<h3>{escape(outcome.model)}, seed {outcome.seed}</h3>"
        parts.append(f'{title}{alarms}<div class="charts">{"".join(charts)}</div>')
    note = "<p>Mean and standard deviation of a gate's weights over the measured rows.</p>"
    return f"<h2>Use of experts</h2>{note}{''.join(parts)}" if parts else ""


def write_report(
    storage: Any, outcomes: Sequence[Outcome], rows: Sequence[ModelRow], kinds: dict[str, str], plan: ComparisonPlan
) -> dict[str, str]:
    """Write all three into a comparison's folder; return their places by form."""
    files = {
        "parquet": ("table.parquet", to_parquet(outcomes)),
        "markdown": ("table.md", to_markdown(rows, kinds, plan).encode()),
        "html": ("index.html", to_html(outcomes, rows, kinds, plan).encode()),
    }
    for name, data in files.values():
        storage.write(name, data)
    return {form: f"{storage.url}/{name}" for form, (name, _) in files.items()}
