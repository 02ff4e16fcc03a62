"""Sections of what other commands have measured: backfills, slices, calibration curves and comparisons."""

from collections.abc import Sequence
from itertools import combinations

from pipeline.report.charts import Chart, Palette, Row, calibration_curve, changes, heat_map, seesaw
from pipeline.report.page import Section, Table, plural
from pipeline.report.stored_figures import CalibrationCurve, MeasuredCell, StoredFigures, slice_changes
from pipeline.report.task_days import QUALITY, ReportedTask
from pipeline.studies.gains import Spread

_MOST_SLICES, _MOST_PAIRS = 15, 9
_BACKFILL = "jobs.backfill"


def heat_map_section(stored: StoredFigures, tasks: Sequence[ReportedTask]) -> Section:
    """Return the section of checkpoints on days.

    Args:
        stored: Figures of other commands.
        tasks: Tasks of the line.
    """
    whole = [cell for cell in stored.cells if not cell.slice]
    row_sets = {cell.row_set for cell in whole}
    shown = "all" if "all" in row_sets else "held_out"
    of_task: dict[str, list[MeasuredCell]] = {}
    for cell in whole:
        if cell.row_set == shown:
            of_task.setdefault(cell.task, []).append(cell)
    kinds = {task.name: QUALITY[task.kind] for task in tasks}
    rows_said = "all rows of the day" if shown == "all" else "held-out rows"
    intro = (
        f"Quality of each checkpoint on each measured day, on {rows_said}. On its own day and the days before, a "
        "checkpoint has trained the rows that are not held out, and looks too good."
    )
    notes = (
        [f"{plural(stored.num_older, 'older measured day')} left out; --days shows them."] if stored.num_older else []
    )
    if len(row_sets) > 1:
        notes.append("Measurements of held-out rows alone are left out.")
    return Section(
        name="heat-map",
        title="Checkpoints on days",
        intro=intro,
        notes=notes,
        charts=[
            heat_map(task, _cell_rows(of_task[task]), kinds.get(task, "quality"))
            for task in dict.fromkeys([*kinds, *of_task])
            if task in of_task
        ],
        absent=f"No checkpoint of this line is measured on these days: {_BACKFILL} measures them.",
    )


def _cell_rows(cells: Sequence[MeasuredCell]) -> list[Row]:
    """Return the rows of a heat map; a checkpoint is named by its day, and by more where a day has several."""
    of_day: dict[str, list[str]] = {}
    for checkpoint_day, checkpoint in sorted({(cell.checkpoint_day, cell.checkpoint) for cell in cells}):
        of_day.setdefault(checkpoint_day, []).append(checkpoint)
    names = {
        checkpoint: day if len(found) == 1 else f"{day} ({checkpoint.partition(day + '/')[2] or checkpoint})"
        for day, found in of_day.items()
        for checkpoint in found
    }
    return [
        {"day": cell.day, "checkpoint": names[cell.checkpoint], "value": cell.value, "num_rows": cell.num_rows}
        for cell in cells
    ]


def slice_section(cells: Sequence[MeasuredCell], palette: Palette) -> Section:
    """Return the section of the slices with the largest drops.

    Args:
        cells: Measured cells.
        palette: Colours of the tasks.
    """
    name, title = "slices", "Slices with the largest drops"
    if not any(cell.slice for cell in cells):
        absent = f"No slice is measured on these days: {_BACKFILL} measures those that the configuration declares."
        return Section(name=name, title=title, absent=absent)
    found = slice_changes(cells)
    if not found:
        absent = f"The slices are measured on one day only: {_BACKFILL} with more --days gives them a past."
        return Section(name=name, title=title, absent=absent)
    worst = found[:_MOST_SLICES]
    named = {one.task: (9, 0) for one in worst} | dict(palette.places)
    rows = [
        {"label": f"{one.slice}, {one.task}", "task": one.task, "value": one.change, "num_rows": one.num_rows}
        for one in worst
    ]
    head = ("slice", "task", "change", f"on {worst[0].day}", "mean before", "days before", "rows")
    cells_of = [
        (
            one.slice,
            one.task,
            f"{one.change:+.4f}",
            f"{one.value:.4f}",
            f"{one.usual:.4f}",
            f"{one.num_days:,}",
            f"{one.num_rows:,}",
        )
        for one in worst
    ]
    chart = changes(f"Change on {worst[0].day}", rows, Palette(named), "change of AUC, R² or accuracy")
    intro = (
        f"Quality on {worst[0].day} less the mean of the measured days before, by the newest model that had not "
        f"trained the day; {len(worst)} of {len(found):,} slices and tasks. A slice of few rows moves by chance."
    )
    return Section(
        name=name, title=title, intro=intro, charts=[chart], tables=[Table(head, cells_of, frozenset(range(2, 7)))]
    )


def calibration_section(curves: Sequence[CalibrationCurve], tasks: Sequence[ReportedTask], palette: Palette) -> Section:
    """Return the section of calibration curves.

    Args:
        curves: The newest curves.
        tasks: Tasks of the line.
        palette: Colours of the tasks.
    """
    kinds = {task.name: task.kind for task in tasks}
    charts = [
        calibration_curve(
            curve.task,
            [{"task": curve.task} | point for point in curve.points],
            palette,
            "probability" if kinds[curve.task] == "binary" else "the label's unit",
        )
        for curve in curves
        if curve.task in kinds
    ]
    sources = "; ".join(dict.fromkeys(curve.source for curve in curves))
    intro = f"Mean label of rows with like predictions: {sources}. On the dashed line both are equal."
    absent = "No ledger entry and no stored evaluation has a calibration curve: jobs.daily and jobs.evaluate make them."
    return Section(
        name="calibration",
        title="Calibration curves",
        intro=intro,
        charts=charts,
        absent=absent,
    )


def seesaw_section(stored: StoredFigures) -> Section:
    """Return the section of the gains over single-task models."""
    charts = [
        chart
        for comparison in stored.comparisons
        for chart in seesaw_charts(comparison.gains, f"{comparison.name}: ", _MOST_PAIRS)
    ]
    notes = [f"{plural(stored.num_others, 'further comparison')} below ROOT/comparisons."] if stored.num_others else []
    intro = (
        "Gains over the single-task model of each task, in the stored comparisons; of many pairs of tasks those in "
        "which one gains and the other loses most. The page of a comparison has all."
    )
    absent = "No comparison with single-task models is stored in this root: jobs.compare --models single,... makes one."
    return Section(
        name="seesaw",
        title="The seesaw",
        intro=intro,
        notes=notes,
        charts=charts,
        absent=absent,
    )


def seesaw_charts(gains: dict[str, dict[str, Spread]], prefix: str = "", most: int | None = None) -> list[Chart]:
    """Draw the gain of one task against that of another, for every pair of tasks.

    Args:
        gains: Gains by model and task.
        prefix: Text before each title.
        most: Largest number of charts, those with the largest conflicts first; None: all, in the order of tasks.
    """
    tasks = list(dict.fromkeys(task for of_tasks in gains.values() for task in of_tasks))
    models = Palette.of(list(gains))
    pairs = [(pair, rows) for pair in combinations(tasks, 2) if (rows := _points(gains, *pair))]
    if most is not None and len(pairs) > most:
        pairs = sorted(pairs, key=lambda found: min(row["x"] * row["y"] for row in found[1]))[:most]
    return [seesaw(f"{prefix}{a} against {b}", rows, (a, b), models) for (a, b), rows in pairs]


def _points(gains: dict[str, dict[str, Spread]], a: str, b: str) -> list[Row]:
    found = []
    for model, of_tasks in gains.items():
        x, y = of_tasks.get(a), of_tasks.get(b)
        if x is not None and y is not None and x.mean is not None and y.mean is not None:
            spread = {"dx": x.deviation or 0.0, "dy": y.deviation or 0.0}
            found.append({"model": model, "x": x.mean, "y": y.mean} | spread)
    return found
