"""Pages in a real browser: no error, no request, no scroll sideways, at two widths, light and dark (browser.py)."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from browser import Browser, browsing, executable
from outcomes import outcome_of
from report_lines import CHINESE, HTML, day_of, write_backfill, write_comparison, write_line

from pipeline.config.project import Config
from pipeline.report.comparison_page import comparison_page
from pipeline.report.page import render
from pipeline.report.write_line_report import write_line_report
from pipeline.studies.comparison import ComparisonPlan
from pipeline.studies.gains import model_rows

pytestmark = pytest.mark.skipif(executable() is None, reason="there is no chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of 1, 14 and 400 days, one with names that are Chinese and HTML, and one of a comparison."""
    found = {}
    for num_days in (1, 14, 400):
        config = write_line(tmp_path_factory.mktemp(f"days{num_days}"), num_days)
        if num_days > 1:
            write_comparison(config)
            first = max(0, num_days - 60)
            write_backfill(config, range(max(0, num_days - 40), num_days), range(first, num_days), ("", f"城市={HTML}"))
        found[str(num_days)] = _written(config, num_days)
    config = write_line(tmp_path_factory.mktemp("names"), 3, tasks=(CHINESE, HTML, "a_name_that_is_" + "long_" * 20))
    found["names"] = _written(config, 3)
    found["comparison"] = tmp_path_factory.mktemp("comparison") / "index.html"
    found["comparison"].write_bytes(_comparison())
    return found


def _written(config: Config, num_days: int) -> Path:
    now = datetime.fromisoformat(f"{day_of(num_days)}T00:00:00").replace(tzinfo=UTC)
    done = write_line_report(config, None, now=now)
    assert done["bytes"] < 2_000_000
    return Path(done["report"])


def _comparison() -> bytes:
    use = {"gates": {"mean": [[0.995, 0.005], [0.4, 0.6]], "deviation": [[0.1, 0.1], [0.2, 0.2]]}}
    mmoe = {"kind": "mmoe", "num_experts": 2, "expert_layers": [4]}
    outcomes = [
        outcome_of("single", 1, 0.70, 0.10),
        outcome_of(f"模型 {HTML}", 1, 0.73, 0.11, setting=mmoe, expert_use=use),
    ]
    plan = ComparisonPlan(name=HTML, models=("single",), train_days=("2026-01-01",), test_days=("2026-01-02",))
    rows = model_rows(outcomes)
    return render(comparison_page(outcomes, rows, {"ctr": "binary", "vcr": "regression"}, plan), datetime.now(UTC))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["14", "names", "comparison"])
def test_a_page(name: str, width: int, dark: bool, pages: dict[str, Path], browser: Browser) -> None:
    """Catches an error of a chart, a script that a name runs, a request, and a page that is wider than a phone."""
    _check(browser, pages[name], width, dark=dark)


@pytest.mark.parametrize(("name", "width"), [("1", 390), ("400", 1280), ("400", 390)])
def test_few_and_many_days(name: str, width: int, pages: dict[str, Path], browser: Browser) -> None:
    """Catches charts that fail with one day, or with 400 of them."""
    _check(browser, pages[name], width, dark=width < 500)


def _check(browser: Browser, file: Path, width: int, *, dark: bool) -> None:
    browser.open(file, width, 900, dark=dark)
    assert browser.errors == []
    assert browser.dialogs == []
    assert browser.requests == [file.resolve().as_uri()]
    assert browser.value("document.documentElement.scrollWidth") <= width
    drawn = "[...document.querySelectorAll('.plot svg, .plot canvas')]"
    assert browser.value(f"{drawn}.filter((one) => one.getBoundingClientRect().right > innerWidth).length") == 0
    ground = browser.value("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")
    labels = browser.value("getComputedStyle(document.querySelector('.plot svg text')).fill")
    assert labels in (("rgb(163, 171, 182)", "rgb(232, 234, 238)") if dark else ("rgb(90, 98, 109)", "rgb(27, 31, 36)"))


def test_names_are_shown(pages: dict[str, Path], browser: Browser) -> None:
    """Catches a name that is cut at its first sign, shown as an entity, or missing from the legend."""
    browser.open(pages["names"], 1280, 900, dark=False)
    texts = browser.value("[...document.querySelectorAll('.plot svg text')].map((one) => one.textContent)")
    assert CHINESE in texts
    assert HTML in texts
    heads = browser.value("[...document.querySelectorAll('th')].map((one) => one.textContent)")
    assert f"{HTML} (AUC)" in heads


def test_a_change_of_the_scheme_draws_again(pages: dict[str, Path], browser: Browser) -> None:
    """Catches charts that keep the colours of the light page when the evening comes."""
    browser.open(pages["14"], 1280, 900, dark=False)
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    browser.call("Emulation.setEmulatedMedia", features=[dark])
    browser.wait(
        "[...document.querySelectorAll('.plot')].every((place) =>"
        " ['rgb(163, 171, 182)', 'rgb(232, 234, 238)'].includes("
        "getComputedStyle(place.querySelector('svg text') ?? document.body).fill))"
    )
    assert browser.errors == []


def test_tooltips_show_names_as_text(pages: dict[str, Path], browser: Browser) -> None:
    """Catches a tooltip that takes a name for HTML."""
    browser.open(pages["names"], 1280, 900, dark=False)
    place = browser.value(
        "(() => { document.querySelector('.plot').scrollIntoView(); const marks ="
        " [...document.querySelectorAll('.plot')][0].querySelectorAll('.mark-symbol.role-mark path');"
        " const box = [...marks].at(-1).getBoundingClientRect();"
        " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    for step in (1, 0):
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0] + step, y=place[1])
    browser.wait("document.querySelector('#vg-tooltip-element.visible') !== null")
    assert browser.value("document.querySelector('#vg-tooltip-element').querySelectorAll('script, img').length") == 0
    assert browser.dialogs == []
