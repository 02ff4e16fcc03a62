"""Charts of all pages as Vega-Lite specifications: each kind of chart is drawn in one place, here.

A colour is the name of a CSS variable of the page, as in `var(--series-0)`: the page's script puts in its value, for a
light or a dark page. Texts with names of tasks are data of a chart, never part of an expression.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import altair as alt

NUM_COLOURS = 8  # --series-0 .. --series-7 of page.css
_FEW_DAYS = 60  # up to which every day has a mark
_HEIGHT = 240
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2])
_MUTED, _INK, _ALARM = "var(--muted)", "var(--ink)", "var(--alarm)"
_LINES = alt.Legend(title=None, symbolType="stroke", symbolSize=350)
_RESULTS = ("done", "restarted", "interrupted", "refused", "failed", "running or killed")

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of a page.

    Args:
        title: Title above the chart.
        note: Sentences below it; empty: none.
        spec: Vega-Lite specification, whose data are called `rows`.
        rows: The data; a `day` is an ISO date.
        height: Height in pixels, which is kept free until the chart is drawn.
        is_wide: True if the chart has a whole row of the page.
    """

    title: str
    note: str
    spec: dict[str, Any]
    rows: Sequence[Row]
    height: int = _HEIGHT
    is_wide: bool = True


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours and dashes of names, the same in every chart of a page.

    Args:
        places: Number of the colour, and of the dashes, of each name.
    """

    places: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, names: Sequence[str]) -> "Palette":
        """Give each name a colour; of more names than colours several share one, with other dashes."""
        return cls({name: (place % NUM_COLOURS, place // NUM_COLOURS) for place, name in enumerate(names)})

    def colours(self, names: Sequence[str]) -> list[str]:
        """Return the colours of names."""
        return [f"var(--series-{self.places[name][0] % NUM_COLOURS})" for name in names]

    def dashes(self, names: Sequence[str]) -> list[list[int]]:
        """Return the dashes of the lines of names."""
        return [_DASHES[self.places[name][1] % len(_DASHES)] for name in names]


def over_days(
    title: str, rows: Sequence[Row], palette: Palette, y_title: str, *, note: str = "", **options: Any
) -> Chart:
    """Draw a line for each name over days.

    Args:
        title: Title of the chart.
        rows: `day`, `name`, `value`; where it is known the `limit` of the value, which is drawn in dashes.
        palette: Colours of the names.
        y_title: Quantity and unit.
        note: Sentences below the chart.
        options: `band`, two values between which a figure is usual; `log`, True for a logarithmic scale; `zero`, True
            for an axis that begins at 0; `format` of the values; `share`, True for a half-width chart.
    """
    present, num_days = {row["name"] for row in rows}, len({row["day"] for row in rows})
    names = [name for name in palette.places if name in present]
    pick = alt.selection_point(fields=["name"], bind="legend")
    colour = alt.Color("name:N", scale=alt.Scale(domain=names, range=palette.colours(names)), legend=_LINES)
    dash = alt.StrokeDash("name:N", scale=alt.Scale(domain=names, range=palette.dashes(names)), legend=_LINES)
    shown = alt.condition(pick, alt.value(1.0), alt.value(0.12))
    base = alt.Chart().encode(x=_days(rows), color=colour)
    value = alt.Y("value:Q", title=y_title, scale=_values(rows, options), axis=alt.Axis(tickCount=6))
    layers, fields = [_rule(at) for at in options.get("band", ())], ["value"]
    if any(row.get("limit") is not None for row in rows):
        fields.append("limit")
        limits = base.mark_line(strokeWidth=1, strokeDash=[2, 3], interpolate="step").encode(y="limit:Q", opacity=shown)
        layers.append(limits)
    line = base.mark_line(strokeWidth=1.8 if num_days <= _FEW_DAYS else 1).encode(y=value, strokeDash=dash)
    layers.append(line.encode(opacity=shown).add_params(pick))
    if num_days <= _FEW_DAYS:
        points = base.mark_point(filled=True, size=26 if num_days > 3 else 60).encode(opacity=shown)
    else:
        points = base.mark_point(filled=True, size=60, opacity=0)  # seen by the pointer alone
    figures = [alt.Tooltip(f"{field}:Q", format=options.get("format", ".4f")) for field in fields]
    layers.append(points.encode(y=value, tooltip=[alt.Tooltip("day:N"), alt.Tooltip("name:N"), *figures]))
    height = 150 if options.get("share") else _HEIGHT
    return Chart(title, note, _spec(alt.layer(*layers), height), rows, height, not options.get("share"))


def _values(rows: Sequence[Row], options: Mapping[str, Any]) -> alt.Scale:
    """Return the scale of values; the options are those of `over_days`."""
    if not options.get("log"):
        return alt.Scale(zero=bool(options.get("zero")))
    ends = [*(row["value"] for row in rows), *options.get("band", ())]
    return alt.Scale(type="log", domain=[min(ends) / 1.02, max(ends) * 1.02], nice=False)


def bars_over_days(title: str, rows: Sequence[Row], y_title: str, note: str = "") -> Chart:
    """Draw one bar a day.

    Args:
        title: Title of the chart.
        rows: `day`, `value`.
        y_title: Quantity and unit.
        note: Sentences below the chart.
    """
    drawn = (
        alt.Chart()
        .mark_bar(color="var(--series-0)")
        .encode(
            x=_days(rows, binned=True),
            y=alt.Y("value:Q", title=y_title, axis=alt.Axis(format="~s", tickCount=5)),
            tooltip=[alt.Tooltip("day:N"), alt.Tooltip("value:Q", title=y_title, format=",.0f")],
        )
    )
    return Chart(title, note, _spec(drawn, 170), rows, 170)


def results_over_days(title: str, rows: Sequence[Row], note: str = "") -> Chart:
    """Draw the number of attempts a day by their end.

    Args:
        title: Title of the chart.
        rows: `day`, `name` of the end, `value` their number.
        note: Sentences below the chart.
    """
    colours = ["var(--good)", "var(--series-0)", "var(--series-4)", "var(--series-3)", _ALARM, _MUTED]
    scale = alt.Scale(domain=list(_RESULTS), range=colours)
    totals = Counter(row["day"] for row in rows for _ in range(row["value"]))
    ticks = list(range(0, max(totals.values()) + 1, max(totals.values()) // 5 + 1))
    drawn = (
        alt.Chart()
        .mark_bar()
        .encode(
            x=_days(rows, binned=True),
            y=alt.Y("value:Q", title="attempts", axis=alt.Axis(values=ticks, format="d")),
            color=alt.Color("name:N", scale=scale, legend=alt.Legend(title=None)),
            tooltip=[alt.Tooltip("day:N"), alt.Tooltip("name:N", title="ended"), alt.Tooltip("value:Q", title="times")],
        )
    )
    return Chart(title, note, _spec(drawn, 150), rows, 150)


def heat_map(title: str, rows: Sequence[Row], value_title: str, note: str = "") -> Chart:
    """Draw a metric of checkpoints on days.

    Args:
        title: Title of the chart.
        rows: `day` measured, `checkpoint`, `value`, `num_rows`.
        value_title: The metric.
        note: Sentences below the chart.
    """
    checkpoints = sorted({row["checkpoint"] for row in rows}, reverse=True)
    height = max(60, 16 * len(checkpoints))
    drawn = (
        alt.Chart()
        .mark_rect(stroke="var(--paper)", strokeWidth=1)
        .encode(
            x=alt.X("day:O", title="measured day", axis=alt.Axis(labelAngle=-45, labelOverlap=True)),
            y=alt.Y("checkpoint:O", title="checkpoint of day", sort=checkpoints, axis=alt.Axis(labelOverlap=True)),
            color=alt.Color(
                "value:Q",
                scale=alt.Scale(scheme="viridis", zero=False),
                legend=alt.Legend(title=value_title, gradientLength=160, format=".3f", tickCount=3),
            ),
            tooltip=[
                alt.Tooltip("checkpoint:N"),
                alt.Tooltip("day:N", title="measured day"),
                alt.Tooltip("value:Q", title=value_title, format=".4f"),
                alt.Tooltip("num_rows:Q", title="rows", format=","),
            ],
        )
    )
    return Chart(title, note, _spec(drawn, height), rows, height + 60)


def calibration_curve(title: str, rows: Sequence[Row], palette: Palette, unit: str, note: str = "") -> Chart:
    """Draw the mean label of bins of predictions, against the line on which both are equal.

    Args:
        title: Title of the chart.
        rows: `task`, `mean_prediction`, `mean_label`, `num_rows`; each a bin.
        palette: Colours of the tasks.
        unit: Unit of the labels.
        note: Sentences below the chart.
    """
    most = max([max(row["mean_prediction"], row["mean_label"]) for row in rows]) * 1.05 or 1.0
    least = min(0.0, *(min(row["mean_prediction"], row["mean_label"]) for row in rows))
    scale = alt.Scale(domain=[least, most], nice=False)
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    colour = alt.Color(
        "task:N",
        scale=alt.Scale(domain=tasks, range=palette.colours(tasks)),
        legend=alt.Legend(title=None) if len(tasks) > 1 else None,
    )
    base = alt.Chart().encode(
        x=alt.X("mean_prediction:Q", title=f"mean prediction ({unit})", scale=scale, axis=alt.Axis(tickCount=5)),
        y=alt.Y("mean_label:Q", title=f"mean label ({unit})", scale=scale, axis=alt.Axis(tickCount=5)),
        color=colour,
    )
    ends = alt.Chart(alt.InlineData(values=[{"at": least}, {"at": most}]))
    even = ends.mark_line(color=_MUTED, strokeDash=[4, 4], strokeWidth=1).encode(x="at:Q", y="at:Q")
    dots = base.mark_point(filled=True).encode(
        size=alt.Size("num_rows:Q", scale=alt.Scale(range=[25, 160]), legend=None),
        tooltip=[
            alt.Tooltip("task:N"),
            alt.Tooltip("mean_prediction:Q", title="mean prediction", format=".4f"),
            alt.Tooltip("mean_label:Q", title="mean label", format=".4f"),
            alt.Tooltip("num_rows:Q", title="rows", format=","),
        ],
    )
    drawn = alt.layer(even, base.mark_line(strokeWidth=1.5), dots)
    return Chart(title, note, _spec(drawn, 260), rows, 260, is_wide=False)


def seesaw(title: str, rows: Sequence[Row], tasks: tuple[str, str], models: Palette, note: str = "") -> Chart:
    """Draw the gain of one task against the gain of another, in four quadrants around no gain.

    Args:
        title: Title of the chart.
        rows: `model`, gains `x` and `y`, and their standard deviations `dx` and `dy`; 0: not known.
        tasks: Tasks of x and y.
        models: Colours of the models.
        note: Sentences below the chart.
    """
    reach = max(max(abs(row["x"]) + row["dx"], abs(row["y"]) + row["dy"]) for row in rows) * 1.2 or 1.0
    scale = alt.Scale(domain=[-reach, reach], nice=False)
    drawn_rows = [
        dict(row) | {key + end: row[key] + sign * row[f"d{key}"] for key in "xy" for end, sign in (("0", -1), ("1", 1))}
        for row in rows
    ]
    names = list(dict.fromkeys(row["model"] for row in rows))
    colour = alt.Color(
        "model:N",
        scale=alt.Scale(domain=names, range=models.colours(names)),
        legend=alt.Legend(title=None),
    )
    axis = alt.Axis(format="+.4~f", tickCount=3, grid=False)
    x = alt.X("x:Q", title=f"gain of {tasks[0]}", scale=scale, axis=axis)
    y = alt.Y("y:Q", title=f"gain of {tasks[1]}", scale=scale, axis=axis)
    tips = [alt.Tooltip("model:N")]
    tips += [
        alt.Tooltip(f"{key}:Q", title=f"{what}{task}", format=form)
        for end, task in zip("xy", tasks, strict=True)
        for key, what, form in ((end, "gain of ", "+.4f"), (f"d{end}", "deviation, ", ".4f"))
    ]
    base = alt.Chart().encode(color=colour)
    layers = [
        _rule(0.0),
        _rule(0.0, "x"),
        _corners(reach, ("both gain", f"seesaw: {tasks[1]} gains", "both lose", f"seesaw: {tasks[0]} gains")),
        base.mark_rule().encode(x=alt.X("x0:Q", scale=scale), x2="x1:Q", y=y),
        base.mark_rule().encode(y=alt.Y("y0:Q", scale=scale), y2="y1:Q", x=x),
        base.mark_point(filled=True, size=70, opacity=1).encode(
            x=x, y=y, tooltip=tips, shape=alt.Shape("model:N", scale=alt.Scale(domain=names), legend=alt.Legend())
        ),
    ]
    return Chart(title, note, _spec(alt.layer(*layers), 280), drawn_rows, 280, is_wide=False)


def shares(title: str, rows: Sequence[Row], note: str = "") -> Chart:
    """Draw shares between 0 and 1 as bars, with a whisker of one standard deviation to each side.

    Args:
        title: Title of the chart.
        rows: `name`, `mean`, `deviation`, and `collapsed`, True for an alarm.
        note: Sentences below the chart.
    """
    drawn_rows = [
        dict(row) | {"low": max(0.0, row["mean"] - row["deviation"]), "high": min(1.0, row["mean"] + row["deviation"])}
        for row in rows
    ]
    order = [row["name"] for row in rows]
    named = alt.Y("name:N", sort=order, title=None, axis=alt.Axis(labelLimit=170))
    colour = alt.condition(alt.FieldEqualPredicate(field="collapsed", equal=True), alt.value(_ALARM), alt.value(_BAR))
    tips = [alt.Tooltip("name:N"), alt.Tooltip("mean:Q", format=".4f"), alt.Tooltip("deviation:Q", format=".4f")]
    x = alt.X("mean:Q", title="mean weight (share of the gate)", scale=alt.Scale(domain=[0, 1]))
    bars = alt.Chart().mark_bar().encode(y=named, x=x, color=colour, tooltip=tips)
    whiskers = alt.Chart().mark_rule(color=_INK, strokeWidth=1.5).encode(y=named, x="low:Q", x2="high:Q")
    height = 26 * len(rows)
    return Chart(title, note, _spec(alt.layer(bars, whiskers), height), drawn_rows, height + 50, is_wide=False)


_BAR = "var(--series-0)"


def changes(title: str, rows: Sequence[Row], palette: Palette, x_title: str, note: str = "") -> Chart:
    """Draw differences as bars to the left and right of 0, in the order of the rows.

    Args:
        title: Title of the chart.
        rows: `label`, `task`, `value`, `num_rows`.
        palette: Colours of the tasks.
        x_title: Quantity and unit.
        note: Sentences below the chart.
    """
    tasks = [task for task in palette.places if any(row["task"] == task for row in rows)]
    drawn = (
        alt.Chart()
        .mark_bar()
        .encode(
            y=alt.Y("label:N", sort=[row["label"] for row in rows], title=None, axis=alt.Axis(labelLimit=170)),
            x=alt.X("value:Q", title=x_title, axis=alt.Axis(format="+.3f", tickCount=5)),
            color=alt.Color(
                "task:N",
                scale=alt.Scale(domain=tasks, range=palette.colours(tasks)),
                legend=alt.Legend(title=None),
            ),
            tooltip=[
                alt.Tooltip("label:N", title="slice"),
                alt.Tooltip("value:Q", title="change", format="+.4f"),
                alt.Tooltip("num_rows:Q", title="rows", format=","),
            ],
        )
    )
    height = 24 * len(rows)
    return Chart(title, note, _spec(drawn, height), rows, height + 60)


def _days(rows: Sequence[Row], *, binned: bool = False) -> alt.X:
    """Return the axis of days; ticks stand on whole days, at any number of them."""
    days = sorted({row["day"] for row in rows})
    first, last = (datetime.fromisoformat(day).replace(tzinfo=UTC) for day in (days[0], days[-1]))
    num_days = (last - first).days + 1
    step = {"interval": "day", "step": 1} if num_days <= 21 else {"interval": "week", "step": 1}
    ticks: Any = step if num_days <= 70 else {"interval": "month", "step": 1 if num_days <= 300 else 2}
    half = timedelta(hours=12)
    scale = alt.Scale(type="utc")
    if not binned:
        scale = alt.Scale(type="utc", domain=[_moment(first - half), _moment(last + half)], nice=False)
    shown = "%-d %b" if num_days <= 70 else "%b %Y"
    axis = alt.Axis(format=shown, tickCount=ticks, labelOverlap=True, grid=False)
    return alt.X("utcyearmonthdate(date):T" if binned else "date:T", title="day", scale=scale, axis=axis)


def _moment(at: datetime) -> alt.DateTime:
    return alt.DateTime(year=at.year, month=at.month, date=at.day, hours=at.hour, utc=True)


def _rule(at: float, axis: str = "y") -> alt.Chart:
    drawn = alt.Chart(alt.InlineData(values=[{"at": at}])).mark_rule(color=_MUTED, strokeDash=[4, 4], strokeWidth=1)
    return drawn.encode(x="at:Q") if axis == "x" else drawn.encode(y="at:Q")


def _corners(reach: float, names: tuple[str, str, str, str]) -> alt.Chart:
    """Name the quadrants: upper right, upper left, lower left, lower right."""
    places = zip(((1, 1), (-1, 1), (-1, -1), (1, -1)), names, strict=True)
    values = [{"x": x * reach, "y": y * reach, "name": name} for (x, y), name in places]
    mark = alt.Chart(alt.InlineData(values=values)).mark_text(
        color=_MUTED,
        fontSize=10,
        limit=150,
        align=alt.ExprRef("datum.x > 0 ? 'right' : 'left'"),
        baseline=alt.ExprRef("datum.y > 0 ? 'top' : 'bottom'"),
        dx=alt.ExprRef("datum.x > 0 ? -4 : 4"),
        dy=alt.ExprRef("datum.y > 0 ? 4 : -4"),
    )
    return mark.encode(x="x:Q", y="y:Q", text="name:N")


def _spec(drawn: Any, height: int) -> dict[str, Any]:
    """Return the specification of an altair chart, as wide as its place on the page."""
    spec = drawn.properties(data=alt.NamedData("rows"), width="container", height=height).to_dict(
        validate=False  # it takes seconds a page; the tests validate each kind of chart
    )
    del spec["config"]  # altair's own; the page has one
    return spec
