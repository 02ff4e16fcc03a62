"""Report of a line: its page, from its records and from the figures that other commands have stored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from pipeline.config.project import Config
from pipeline.report.charts import Chart, Palette, Row, over_days
from pipeline.report.day_sections import attempt_section, ledger_section, rows_section, weight_section
from pipeline.report.expert_section import expert_section
from pipeline.report.expert_use import ExpertUse, expert_use
from pipeline.report.health import health, verdict_of
from pipeline.report.line_records import LineRecords, read_records
from pipeline.report.measured_sections import calibration_section, heat_map_section, seesaw_section, slice_section
from pipeline.report.page import Page, Section, plural
from pipeline.report.stored_figures import StoredFigures, read_stored
from pipeline.report.task_days import QUALITY, ReportedTask, TaskDay, objectives, reported_tasks, task_days


@dataclass(frozen=True, slots=True, kw_only=True)
class LineFigures:
    """All figures of the page of a line.

    Args:
        records: The line's records.
        tasks: Its tasks.
        days: Figures of the tasks on its days.
        use: Use of its experts.
        stored: Figures that other commands have stored.
    """

    records: LineRecords
    tasks: list[ReportedTask]
    days: list[TaskDay]
    use: ExpertUse
    stored: StoredFigures


def line_figures(config: Config, days: Sequence[str] | None) -> LineFigures:
    """Read all figures of the line of a configuration; arguments and errors as of `read_records`."""
    records = read_records(config, days)
    tasks = reported_tasks(records)
    return LineFigures(
        records=records,
        tasks=tasks,
        days=task_days(records, tasks),
        use=expert_use(records),
        stored=read_stored(config.root, records.line, records.entries, days),
    )


def line_page(figures: LineFigures, now: datetime) -> Page:
    """Return the page of a line.

    Args:
        figures: The line's figures.
        now: Present moment, with its zone.
    """
    records, stored = figures.records, figures.stored
    entries = records.entries
    palette = Palette.of([task.name for task in figures.tasks])
    statements = health(records, figures.days, figures.use, now)
    spoken = entries[0].day if len(entries) == 1 else f"{entries[0].day} to {entries[-1].day}"
    return Page(
        title=f"Line {records.line} of {records.config.name}",
        lead=f"{plural(len(entries), 'published day')}, {spoken}; {plural(len(figures.tasks), 'task')}.",
        verdict=verdict_of(statements),
        statements=statements,
        sections=[
            *_quality_sections(figures, palette),
            expert_section(figures.use, palette),
            slice_section(stored.cells, palette),
            heat_map_section(stored, figures.tasks),
            calibration_section(stored.curves, figures.tasks, palette),
            seesaw_section(stored),
            weight_section(figures.days, palette),
            rows_section(entries),
            attempt_section(records.attempts, entries),
            ledger_section(entries, figures.tasks),
        ],
    )


def _quality_sections(figures: LineFigures, palette: Palette) -> Iterator[Section]:
    """Yield a section for each objective."""
    for objective, tasks in objectives(figures.tasks).items():
        drawn = (draw(figures, tasks, palette) for draw in (_quality_chart, _calibration_chart, _change_chart))
        charts = [chart for chart in drawn if chart is not None]
        intro = (
            "Each day, yesterday's model is measured on the new log before it trains on it. A click on a name below a "
            "chart shows it alone."
        )
        yield Section(
            name=f"next-day-{objective}",
            title=f"Next-day metrics: {objective}",
            intro=intro,
            charts=charts,
            absent="No day has metrics of these tasks: jobs.daily makes them from its second day on.",
        )


def _series(figures: LineFigures, tasks: Sequence[ReportedTask], field: str) -> list[Row]:
    """Return the known values of a field of `TaskDay`."""
    names = {task.name for task in tasks}
    found = ((one, getattr(one, field)) for one in figures.days if one.task in names)
    return [
        {"day": one.day, "name": one.task, "value": value, "limit": one.least if field == "quality" else None}
        for one, value in found
        if value is not None
    ]


def _quality_chart(figures: LineFigures, tasks: Sequence[ReportedTask], palette: Palette) -> Chart | None:
    if not (rows := _series(figures, tasks, "quality")):
        return None
    kinds = {task.name: QUALITY[task.kind] for task in tasks}
    unit = " or ".join(dict.fromkeys(kinds[row["name"]] for row in rows))
    note = (
        "Dotted: the least that the gate lets pass, by today's configuration. A task has none before it has "
        f"{plural(figures.records.config.daily.gate.min_entries, 'day')}."
    )
    return over_days("Quality on the next day", rows, palette, f"{unit} (1 is best)", note=note)


def _calibration_chart(figures: LineFigures, tasks: Sequence[ReportedTask], palette: Palette) -> Chart | None:
    rows = [row for row in _series(figures, tasks, "calibration") if row["value"] > 0]
    if not rows:
        return None
    note = "Dashed: 1, which is right. Above it the model predicts too much. The scale is logarithmic."
    title, unit = "Calibration on the next day", "predictions / labels"
    return over_days(title, rows, palette, unit, note=note, band=(1.0,), log=True, format=".3f")


def _change_chart(figures: LineFigures, tasks: Sequence[ReportedTask], palette: Palette) -> Chart | None:
    if not (rows := _series(figures, tasks, "change")):
        return None
    gate = figures.records.config.daily.gate
    drops = sorted({gate.limit(task.name, "drop") for task in tasks})
    note = (
        f"Dashed: no change, and the largest drop that the gate lets pass ({', '.join(f'{drop:g}' for drop in drops)}; "
        "the line's own spread and chance widen it)."
    )
    title, unit = "New model against its parent on the hold-out", "difference of quality"
    return over_days(title, rows, palette, unit, note=note, band=(0.0, *(-one for one in drops)), zero=True)
