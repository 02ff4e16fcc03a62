"""Sections of a line's days: loss weights, rows and ids, attempts, and the ledger as a table."""

from collections import Counter
from collections.abc import Sequence

from pipeline.daily.gate import quality
from pipeline.lineage.ledger_entry import LedgerEntry
from pipeline.lineage.records import Attempt
from pipeline.report.charts import Palette, bars_over_days, over_days, results_over_days
from pipeline.report.health import attempt_end, outcome_of
from pipeline.report.page import Section, Table, listed
from pipeline.report.task_days import QUALITY, ReportedTask, TaskDay

_MOST_ATTEMPTS, _MOST_TABLES, _LONG = 30, 12, 300


def weight_section(days: Sequence[TaskDay], palette: Palette) -> Section:
    """Return the section of loss weights.

    Args:
        days: Figures of the tasks.
        palette: Colours of the tasks.
    """
    rows = [{"day": one.day, "name": one.task, "value": one.loss_weight} for one in days if one.loss_weight is not None]
    note = "Weight of each task in the loss at the end of the day."
    chart = over_days("Loss weights", rows, palette, "weight (times the task's loss)", note=note, zero=True)
    absent = "No day has loss weights: jobs.daily and jobs.train write them."
    return Section(name="weights", title="Loss weights", charts=[chart] if rows else [], absent=absent)


def rows_section(entries: Sequence[LedgerEntry]) -> Section:
    """Return the section of rows, rows per second and new ids."""
    rows = [{"day": one.day, "value": one.rows} for one in entries if one.rows is not None]
    rates = [
        {"day": one.day, "value": one.rows / one.train_seconds} for one in entries if one.rows and one.train_seconds
    ]
    charts = [bars_over_days("Rows", rows, "rows trained a day")] if rows else []
    charts += [bars_over_days("Rows per second", rates, "rows/s while stepping")] if rates else []
    tables = list(dict.fromkeys(table for one in entries for table in one.new_ids))
    for table in tables[:_MOST_TABLES]:
        found = [
            {"day": one.day, "name": name, "value": count}
            for one in entries
            for name, count in one.new_ids.get(table, {}).items()
        ]
        names = Palette.of(list(dict.fromkeys(row["name"] for row in found)))
        charts.append(over_days(f"Ids of table {table}", found, names, "ids a day", zero=True, format=",", share=True))
    notes = [] if tables else ["No table has a vocabulary, so no new ids are counted (docs/vocabulary.md)."]
    if len(tables) > _MOST_TABLES:
        notes.append(f"Ids of {listed(tables[_MOST_TABLES:])} are not drawn.")
    return Section(
        name="rows",
        title="Rows and new ids",
        notes=notes,
        charts=charts,
        absent="No day has rows: jobs.daily and jobs.train write them.",
    )


def attempt_section(attempts: Sequence[Attempt], entries: Sequence[LedgerEntry]) -> Section:
    """Return the section of attempts and their ends.

    Args:
        attempts: The attempts, by number.
        entries: Published entries.
    """
    if not attempts:
        absent = "No attempt at these days is recorded on this line: jobs.daily and jobs.train record them."
        return Section(name="attempts", title="Attempts", absent=absent)
    ends = Counter((day, one.result or "running or killed") for one in attempts for day in one.days)
    rows = [{"day": day, "name": end, "value": times} for (day, end), times in sorted(ends.items())]
    trained = {one.attempt for one in entries if one.attempt}
    cells = [
        (
            f"{one.attempt:04d}",
            one.days[0] if len(one.days) == 1 else f"{one.days[0]}..{one.days[-1]}",
            attempt_end(one),
            "yes" if f"{one.attempt:04d}" in trained else "no",
            _shortened(one.reason or ""),
        )
        for one in attempts[::-1][:_MOST_ATTEMPTS]
    ]
    counts = Counter(one.result or "running or killed" for one in attempts)
    said = ", ".join(f"{times:,} {end}" for end, times in counts.most_common())
    intro = f"{len(attempts):,} attempts: {said}. The table has the newest {len(cells)}."
    return Section(
        name="attempts",
        title="Attempts",
        intro=intro,
        charts=[results_over_days("Attempts a day, by their end", rows)],
        tables=[Table(("attempt", "days", "ended", "published", "reason"), cells)],
    )


def ledger_section(entries: Sequence[LedgerEntry], tasks: Sequence[ReportedTask]) -> Section:
    """Return the ledger as a table, the newest day first.

    Args:
        entries: Published entries, the oldest first.
        tasks: Tasks of the line.
    """
    measured = [task for task in tasks if any(task.name in (one.before or {}) for one in entries)]
    qualities = [f"{task.name} ({QUALITY[task.kind]})" for task in measured]
    head = ["day", "rows", "rows/s", "held out", *qualities, "preflight", "gate", "made by", "checkpoint", "remarks"]
    cells = [_cells(entry, [task.name for task in measured]) for entry in reversed(entries)]
    return Section(
        name="ledger",
        title="Day by day",
        intro="The published days, the newest first; the quality is that of yesterday's model on the day.",
        tables=[Table(head, cells, frozenset(range(1, 4 + len(measured))))],
    )


def _cells(entry: LedgerEntry, tasks: Sequence[str]) -> list[str]:
    rate = f"{entry.rows / entry.train_seconds:,.0f}" if entry.rows and entry.train_seconds else "-"
    return [
        entry.day if entry.generation <= 1 else f"{entry.day}, generation {entry.generation}",
        "-" if entry.rows is None else f"{entry.rows:,}",
        rate,
        "-" if entry.held_out is None else f"{entry.held_out:,}",
        *(_quality(entry, task) for task in tasks),
        outcome_of(entry.preflight),
        outcome_of(entry.gate),
        f"jobs.{entry.kind}" if entry.kind != "skip" else "left out",
        entry.checkpoint.removeprefix("checkpoints/"),
        _shortened("; ".join(_remarks(entry))),
    ]


def _quality(entry: LedgerEntry, task: str) -> str:
    metrics = (entry.before or {}).get(task)
    value = quality(metrics) if metrics else None
    return "-" if value is None else f"{value:.4f}"


def _remarks(entry: LedgerEntry) -> list[str]:
    said = [f"left out by {entry.by or 'unknown'}: {entry.skipped}"] if entry.skipped is not None else []
    for name, verdict in (("preflight", entry.preflight), ("gate", entry.gate)):
        if verdict is not None and verdict.problems:
            said.append(f"{name} accepted by {verdict.by or 'unknown'}: {verdict.accepted}")
    said += [f"{len(entry.quarantined):,} units could not be read"] if entry.quarantined else []
    said += [f"late labels of {listed(entry.late, most=2)}"] if entry.late else []
    return said


def _shortened(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}..."
