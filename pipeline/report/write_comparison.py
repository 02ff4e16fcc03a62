"""Results of a comparison in its folder: Parquet for further work, Markdown for a review, a page with its charts."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pipeline.report.comparison import to_markdown, to_parquet
from pipeline.report.comparison_page import comparison_page
from pipeline.report.page import render
from pipeline.studies.comparison import ComparisonPlan, Outcome
from pipeline.studies.gains import ModelRow


def write_report(
    storage: Any, outcomes: Sequence[Outcome], rows: Sequence[ModelRow], kinds: dict[str, str], plan: ComparisonPlan
) -> dict[str, str]:
    """Write all three into a comparison's folder; return their places by form."""
    now = datetime.now(UTC)
    files = {
        "parquet": ("table.parquet", to_parquet(outcomes)),
        "markdown": ("table.md", to_markdown(outcomes, rows, kinds, plan).encode()),
        "html": ("index.html", render(comparison_page(outcomes, rows, kinds, plan), now)),
    }
    for name, data in files.values():
        storage.write(name, data)
    return {form: f"{storage.url}/{name}" for form, (name, _) in files.items()}
