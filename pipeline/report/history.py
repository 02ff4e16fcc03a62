"""History of a line: one row a day from its ledger, as data and as a table."""

from collections.abc import Collection, Sequence
from typing import Any

from pipeline.daily.gate import quality
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.ledger_entry import LedgerEntry, Verdict
from pipeline.lineage.line import Line


def history(line: Line, days: Collection[str] | None) -> list[dict[str, Any]]:
    """Return the published days of a line, the oldest first; of a branch, those of its origin too.

    Args:
        line: The line.
        days: ISO dates to return; None: all.
    """
    return [_row(entry) for entry in Ledger(line).chain() if days is None or entry.day in days][::-1]


def _row(entry: LedgerEntry) -> dict[str, Any]:
    checks = {"preflight": entry.preflight, "gate": entry.gate}
    said = entry.model_dump(
        include={"day", "line", "generation", "kind", "rows", "held_out", "skipped", "by", "checkpoint", "run", "at"}
    )
    return said | {
        "before": {task: quality(metrics) for task, metrics in (entry.before or {}).items()},
        **{name: _outcome(verdict) for name, verdict in checks.items()},
        "accepted": [
            {"check": name, "reason": verdict.accepted, "by": verdict.by, "problems": list(verdict.problems)}
            for name, verdict in checks.items()
            if verdict is not None and verdict.accepted is not None
        ],
        "advice": [line for verdict in checks.values() if verdict is not None for line in verdict.advice],
    }


def _outcome(verdict: Verdict | None) -> str | None:
    """Return the outcome of a check; None if it was not made."""
    if verdict is None:
        return None
    return "accepted" if verdict.problems else "passed"


def history_table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the rows of `history` as lines of equal columns."""
    tasks = list(dict.fromkeys(task for row in rows for task in row["before"]))
    head = ("day", "rows", *tasks, "preflight", "gate", "checkpoint", "accepted or left out")
    cells = [head, *(_cells(row, tasks) for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(head))]
    numbers = range(1, len(tasks) + 2)  # rows and metrics end at the same place
    lines = [
        "  ".join(
            cell.rjust(width) if place in numbers else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _cells(row: dict[str, Any], tasks: Sequence[str]) -> tuple[str, ...]:
    notes = [f"{one['check']} by {one['by'] or 'unknown'}: {one['reason']}" for one in row["accepted"]]
    if row["skipped"] is not None:
        notes.append(f"left out by {row['by'] or 'unknown'}: {row['skipped']}")
    qualities = (row["before"].get(task) for task in tasks)
    return (
        row["day"],
        "-" if row["rows"] is None else f"{row['rows']:,}",
        *("-" if value is None else f"{value:.4f}" for value in qualities),
        row["preflight"] or "-",
        row["gate"] or "-",
        row["checkpoint"],
        "; ".join(notes),
    )
