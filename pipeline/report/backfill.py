"""Result of a backfill: its tables as text, and the figures of its JSON line."""

import itertools
from dataclasses import asdict
from typing import Any

from pipeline.config.project import Config
from pipeline.evaluation.backfill import Backfilled
from pipeline.evaluation.cells import AskedCells
from pipeline.evaluation.differences import Difference, differences
from pipeline.evaluation.heat_map import difference_maps, metric_maps
from pipeline.report.figures import write_figures


def report_backfill(config: Config, asked: AskedCells, found: Backfilled) -> tuple[str, dict[str, Any]]:
    """Format a backfill; write its differences, if any, to a file below ROOT/reports.

    Args:
        config: The project's configuration.
        asked: The cells that were asked for.
        found: The result.

    Returns:
        The tables for a person, and the figures of the command's JSON line.
    """
    days = sorted({cell.day for cell in found.cells})
    result: dict[str, Any] = {
        "result": "measured" if found.num_measured else "nothing to do",
        "cells": len(found.cells),
        "measured": found.num_measured,
        "checkpoints": sorted({f"{cell.line}:{cell.checkpoint}" for cell in found.cells}),
        "days": days,
        "metrics": found.table.storage.url,
    }
    text = metric_maps(found.table, found.cells)
    if found.against:
        apart = _differences(config, found)
        text += f"\n\nagainst {asked.against}:\n{difference_maps(apart)}"
        name = f"backfill/{config.line}/{days[0]}_{days[-1]}_{asked.rows}"
        figures = [{"day": one.cell.day, "lag": one.cell.lag} | _flat(one) for one in apart]
        result["figures"] = write_figures(config.root, name, {"against": asked.against, "differences": figures})
    return text, result


def _differences(config: Config, found: Backfilled) -> list[Difference]:
    drawn = config.evaluation.bootstrap
    assert drawn is not None  # else the command has refused
    by_day = itertools.groupby(found.cells, lambda cell: cell.day)
    return [
        one for day, cells in by_day for one in differences(found.table, list(cells), found.against[day], drawn.level)
    ]


def _flat(one: Difference) -> dict[str, Any]:
    named = {"line": one.cell.line, "checkpoint": one.cell.checkpoint}
    return named | {key: value for key, value in asdict(one).items() if key != "cell"}
