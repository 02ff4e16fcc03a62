"""Report of a line as the command writes it: a file below the root or elsewhere, and the figures of the JSON line."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pipeline.config.project import Config
from pipeline.report.line_page import line_figures, line_page
from pipeline.report.page import render
from pipeline.storage.files import Storage


def write_line_report(
    config: Config, days: Sequence[str] | None, out: str | None = None, now: datetime | None = None
) -> dict[str, Any]:
    """Write the page of a line.

    Args:
        config: The project's configuration, whose `line` is reported.
        days: ISO dates to report; None: all.
        out: Path or s3:// url of the file; None: `ROOT/reports/<line>.html`.
        now: Present moment; None: by this machine's clock.

    Returns:
        The figures of the JSON line.

    Raises:
        ConfigError: The line has no published day among these.
        DataError: A record is damaged.
    """
    now = now or datetime.now(UTC)
    figures = line_figures(config, days)
    page = line_page(figures, now)
    data = render(page, now)
    storage, name = _place(config, out)
    storage.write(name, data)
    entries = figures.records.entries
    return {
        "result": "written",
        "line": figures.records.line,
        "report": f"{storage.url}/{name}",
        "bytes": len(data),
        "days": len(entries),
        "first_day": entries[0].day,
        "last_day": entries[-1].day,
        "alarms": [one.text for one in page.statements if one.level == "alarm"],
        "to_look_at": [one.text for one in page.statements if one.level == "look"],
    }


def _place(config: Config, out: str | None) -> tuple[Storage, str]:
    if out is None:
        return Storage(config.root).under("reports"), f"{config.line}.html"
    folder, _, name = out.rpartition("/")
    return Storage(folder or ("/" if out.startswith("/") else ".")), name
