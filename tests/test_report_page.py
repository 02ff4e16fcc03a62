"""Pages: what stands in the file, without a browser: names that are HTML, size, colours, valid charts."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import altair as alt
import pytest
from report_lines import CHINESE, HTML, TASKS, day_of, write_backfill, write_comparison, write_line

from pipeline.report.charts import Palette, calibration_curve, over_days
from pipeline.report.expert_section import expert_section
from pipeline.report.expert_use import ExpertShare, ExpertUse
from pipeline.report.line_page import line_figures, line_page
from pipeline.report.page import Page, json_element, packed, render

TEMPLATES = Path(__file__).parents[1] / "pipeline/report/templates"
NOW = datetime(2025, 11, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a line with all that a report can have."""
    config = write_line(tmp_path_factory.mktemp("root"), 5)
    write_comparison(config)
    write_backfill(config, range(4), range(5), ("", "device=phone"))
    return line_page(line_figures(config, None), NOW)


def _own_part(html: str) -> str:
    """Return a page without its scripts, which know HTML."""
    return re.sub(r"<script>(?!alert).*?</script>", "", html, flags=re.DOTALL)


def _embedded(html: str) -> Any:
    (found,) = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', html, re.DOTALL)
    return json.loads(found)


def test_a_name_that_is_html_stays_a_name(tmp_path: Path) -> None:
    """Catches a task whose name runs as a script, from the table or from a chart's data."""
    config = write_line(tmp_path, 3, tasks=("ctr", HTML, CHINESE, "</script><img src=x onerror=alert(2)>"))
    html = _own_part(render(line_page(line_figures(config, None), NOW), NOW).decode())
    assert "<script>alert" not in html
    assert "<img" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert CHINESE in html
    rows = [chart["rows"] for chart in _embedded(html)]
    assert any(HTML in columns["name"]["texts"] for columns in rows if "name" in columns)


def test_json_in_a_page_is_closed_by_nothing() -> None:
    """Catches data that end the element in which they stand, or a line that JavaScript does not read."""
    value = {"</script><!--": ["<b>&amp;\u2028\u2029", CHINESE, 'quote " \\']}
    text = json_element(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value


def test_rows_are_packed_by_column() -> None:
    """Catches a page that writes every name and day once for each value, and a NaN, which is no JSON."""
    rows = [{"day": "a", "value": 0.123456789}, {"day": "b", "value": float("nan")}, {"day": "a", "limit": 2}]
    assert packed(rows) == {
        "day": {"texts": ["a", "b"], "of": [0, 1, 0]},
        "value": [0.123457, None, None],
        "limit": [None, None, 2],
    }


def test_nothing_is_loaded(page: Page) -> None:
    """Catches an address of a network in the page's own parts, and a policy that would let one be loaded."""
    html = render(page, NOW).decode()
    assert "default-src 'none'" in html
    assert html.count("&#39;sha256-") == 2
    own = _own_part(html)
    assert re.findall(r"https?://(?!vega\.github\.io/schema)", own) == []
    assert re.findall(r"<(?:link|img|script)[^>]*(?:src|href)=\"(?!data:)", own) == []
    assert html.count("window.vegaEmbed=") == 1  # the library stands in the page once


def test_charts_are_valid(page: Page) -> None:
    """Catches a specification that Vega-Lite would refuse; the page itself does not check them, which takes seconds."""
    charts = [chart for section in page.sections for chart in section.charts]
    curve = calibration_curve(
        "ctr",
        [{"task": "ctr", "mean_prediction": 0.1, "mean_label": 0.2, "num_rows": 5}],
        Palette.of(["ctr"]),
        "probability",
    )
    by_kind = {json.dumps(sorted(map(str, chart.spec))) + chart.title[:5]: chart for chart in [*charts, curve]}
    assert len(by_kind) > 8
    for chart in by_kind.values():
        kind = alt.LayerChart if "layer" in chart.spec else alt.Chart
        kind.from_dict(chart.spec, validate=True)
        assert chart.spec["width"] == "container"
        assert chart.rows, chart.title


def test_a_task_has_one_colour(page: Page) -> None:
    """Catches a task that is blue in one chart and green in the next, where it stands alone."""
    colours: dict[str, set[str]] = {}
    for section in page.sections:
        for chart in section.charts if section.name.startswith(("next", "weights", "slices", "experts")) else ():
            for scale in re.findall(r'"domain": (\[[^]]*\]), "range": (\["var[^]]*\])', json.dumps(chart.spec)):
                for name, colour in zip(*map(json.loads, scale), strict=True):
                    colours.setdefault(name.removeprefix("own expert of "), set()).add(colour)
    assert {task: len(colours[task]) for task in TASKS} == dict.fromkeys(TASKS, 1)
    assert len(set.union(*(colours[task] for task in TASKS))) == len(TASKS)


def test_more_names_than_colours() -> None:
    """Catches a ninth task that looks exactly like the first."""
    names = [f"task_{number}" for number in range(20)]
    palette = Palette.of(names)
    looks = set(zip(palette.colours(names), map(str, palette.dashes(names)), strict=True))
    assert len(looks) == 20


def test_experts_over_many_days_are_thinned() -> None:
    """Catches a page of many megabytes, and a thinning that leaves out the newest day."""
    gates = [f"gate of task {task}" for task in range(20)]
    shares = [
        ExpertShare(day_of(day), gate, f"shared expert {expert}", "", 0.1, 10)
        for day in range(400)
        for gate in gates
        for expert in range(10)
    ]
    section = expert_section(ExpertUse(tuple(shares), ()), Palette.of(["ctr"]))
    rows = [row for chart in section.charts for row in chart.rows]
    assert 4_000 < len(rows) <= 8_200
    assert max(row["day"] for row in rows) == day_of(399)
    assert "days in between are not drawn" in section.notes[0]


@pytest.mark.parametrize("num_days", [1, 2, 14, 400])
def test_the_axis_of_days_has_room(num_days: int) -> None:
    """Catches one day in the corner of its chart, and the first and last of many on the frame."""
    rows = [{"day": day_of(day), "name": "ctr", "value": 0.5} for day in range(num_days)]
    chart = over_days("x", rows, Palette.of(["ctr"]), "AUC")
    first, last = chart.spec["layer"][0]["encoding"]["x"]["scale"]["domain"]
    assert (first["date"], first["hours"], first["utc"]) == (30, 12, True)
    assert last["hours"] == 12


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, as WCAG 2.1 defines it."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast(scheme: int) -> None:
    """Catches a text below AA (4.5), or a line of a chart below 3, on a light or a dark page."""
    blocks = re.findall(r":root \{(.*?)\}", (TEMPLATES / "page.css").read_text(), re.DOTALL)
    assert len(blocks) == 2
    colours = dict(re.findall(r"(--[a-z0-9-]+): (#[0-9a-f]{6})", blocks[scheme]))
    for text in ("--ink", "--muted", "--good", "--look", "--alarm", "--link"):
        for ground in ("--paper", "--raised"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert all(contrast(colours[f"--series-{number}"], colours["--paper"]) >= 3 for number in range(8))
    assert contrast("#777777", "#ffffff") < 4.5  # the negative control
