"""Comparison as tables: Parquet for further work, Markdown for a review."""

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.evaluation.table import metric_of
from pipeline.ingest.chosen_days import span
from pipeline.studies.comparison import ComparisonPlan, Outcome
from pipeline.studies.gains import ModelRow, Spread, metric
from pipeline.studies.slice_gains import SliceGains, slice_gains
from pipeline.studies.verdicts import verdicts


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
    head, *lines = [f"| {' | '.join(map(_escaped, line))} |" for line in cells]
    return "\n".join([head, f"|{'---|' * len(cells[0])}", *lines])


def _escaped(cell: str) -> str:
    """Return a cell that stays one in Markdown, whatever a value of the log contains."""
    return " ".join(cell.splitlines()).replace("|", "\\|")


def slice_cells(name: str, gains: Sequence[SliceGains]) -> list[list[str]]:
    """Return cells, the head first, of the gains by one declared slice.

    Args:
        name: Name of the declared slice.
        gains: Gains of its values and tasks.
    """
    models = list(gains[0].gains)
    cells = [["task", name, "rows", "positives", *(f"gain {model}" for model in models), "judged"]]
    for one in gains:
        shown = [signed(one.gains[model]) + ("*" if model in one.beyond_chance else "") for model in models]
        positives = "-" if one.num_positives is None else f"{one.num_positives:,}"
        judged = "yes" if one.is_judged else "no, few rows"
        cells.append([one.task, one.value, f"{one.num_rows:,}", positives, *shown, judged])
    return cells


SLICES_INTRO = (
    "Gains over the single-task models on the rows of each value, mean ± standard deviation over the seeds. A star "
    "marks a gain or a loss beyond chance and evaluation.least_gain. Its interval is that of verdicts, 95 % for all "
    "models and judged values of a task in the table together. With one seed there is no interval. A value with "
    "fewer positive or negative rows than evaluation.min_positives (rows, where a task is not binary) is not judged."
)


def signed(spread: Spread) -> str:
    """Format a mean with four digits and its sign, and its spread if known."""
    if spread.mean is None:
        return "undefined"
    return f"{spread.mean:+.4f}" + ("" if spread.deviation is None else f" ± {spread.deviation:.4f}")


def to_markdown(
    outcomes: Sequence[Outcome], rows: Sequence[ModelRow], kinds: dict[str, str], plan: ComparisonPlan
) -> str:
    """Format the table, the plan, the verdicts, and the gains per slice."""
    lines = [f"# Comparison {plan.name}", "", plan_text(plan), "", markdown_table(table_of(rows, kinds))]
    lines += ["", *(f"* {text}" for text in verdicts(rows, plan.least_gain).values()), ""]
    lines += [f"* {row.model}: `{row.setting}`" for row in rows]
    for name, gains in slice_gains(outcomes, plan).items():
        lines += ["", f"## Gains by {name}", "", SLICES_INTRO, "", markdown_table(slice_cells(name, gains))]
    return "\n".join(lines) + "\n"


def plan_text(plan: ComparisonPlan) -> str:
    """Say in sentences what was trained and measured, and what the figures are."""
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
