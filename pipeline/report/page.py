"""Page of HTML in one file: sections with charts and tables, filled into a template; it asks no network for anything.

The templates escape every value. Data and specifications of charts stand in the page as JSON in which no `<` is left,
so no name can end their element. The page's policy names its two scripts by their checksums: nothing else can run.
"""

import base64
import functools
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report.charts import Chart, Row

_TEMPLATES = Path(__file__).parent / "templates"
_DIGITS = 6  # of a figure in a chart; tooltips show four


@dataclass(frozen=True, slots=True)
class Statement:
    """Sentence at the top of a page.

    Args:
        level: `good`, `look` (a person should look at it) or `alarm`.
        text: The sentence.
    """

    level: Literal["good", "look", "alarm"]
    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Table of a section; it scrolls in a box of its own.

    Args:
        head: Names of the columns.
        rows: Cells of each row.
        numbers: Places of the columns with numbers.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Section of a page.

    Args:
        name: Name of its anchor.
        title: Its title.
        intro: Sentences that say how to read it.
        notes: Sentences about what was found.
        alarms: Sentences that are alarms.
        charts: Charts, wide ones one below the other, others side by side.
        tables: Tables below the charts.
        absent: Sentence that says what makes the data; shown, in place of the introduction, if there are none.
    """

    name: str
    title: str
    intro: str = ""
    notes: Sequence[str] = ()
    alarms: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    absent: str = ""

    @property
    def is_empty(self) -> bool:
        """True if there are no data to show."""
        return not self.charts and not self.tables


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Page with charts.

    Args:
        title: Title of the page.
        lead: Sentence below the title.
        verdict: The answer to "is everything all right?"; absent: the page does not answer it.
        statements: Sentences at the top.
        sections: The sections.
    """

    title: str
    lead: str
    verdict: Statement | None = None
    statements: Sequence[Statement] = ()
    sections: Sequence[Section] = ()


def render(page: Page, now: datetime) -> bytes:
    """Return a page as one HTML file.

    Args:
        page: The page.
        now: Moment of writing, with its zone.
    """
    charts = [chart for section in page.sections for chart in section.charts]
    bundle, script = (chart_library() if charts else ""), (_TEMPLATES / "page.js").read_text()
    numbers = {id(chart): number for number, chart in enumerate(charts)}
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("page.html.j2").render(
        page=page,
        number_of=lambda chart: numbers[id(chart)],
        style=Markup((_TEMPLATES / "page.css").read_text()),
        bundle=Markup(bundle),
        script=Markup(script),
        hashes=" ".join(_hash_source(one) for one in (bundle, script) if one),
        charts=json_element([{"spec": chart.spec, "rows": packed(chart.rows)} for chart in charts]),
        written=f"{now.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
    )
    return text.encode()


@functools.cache
def chart_library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, of the version that altair's charts are written for."""
    import altair
    import vl_convert

    bundle: Any = vl_convert.javascript_bundle  # its stub asks for a snippet, which may be absent
    code = bundle(vl_version=".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2]))
    return code.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def json_element(value: Any) -> Markup:
    """Return JSON for the inside of a `<script type="application/json">`, whatever its texts are."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def packed(rows: Sequence[Row]) -> dict[str, Any]:
    """Return rows by column, which takes a third of the bytes: a text stands once, and its number where it is meant."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return {column: _packed_column([row.get(column) for row in rows]) for column in columns}


def _packed_column(values: Sequence[Any]) -> Mapping[str, Any] | list[Any]:
    if not any(isinstance(value, str) for value in values):
        return [_rounded(value) for value in values]
    texts = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return {"texts": list(texts), "of": [texts[value] for value in values]}


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None


def _hash_source(code: str) -> str:
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def plural(count: int, one: str, many: str | None = None) -> str:
    """Return a count with its noun, as in `1 day` or `2 days`."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def listed(texts: Iterable[str], most: int = 5) -> str:
    """Return texts in one line; of more than `most` the first, and the number of the others."""
    found = list(texts)
    rest = len(found) - most
    return ", ".join(found[:most]) + (f" and {rest} more" if rest > 0 else "")
