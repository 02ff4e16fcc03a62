"""Seven synthetic days train, the eighth tests: logs, statistics, training and the table, in one Ray session."""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from features.errors import DataError
from features.figure import named_figures
from jobs.command import command, show

logger = logging.getLogger(__name__)

_CONFIG, _WORLD = "jobs/configs/demo.yaml", "jobs/configs/demo_world.yaml"
_HELD_TASKS, _HELD_SHARE = ("ctr", "vtr"), 0.5  # the demo fails below this share
_TRAIN_DAYS, _TEST_DAY = "2026-11-01..2026-11-07", "2026-11-08"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--folder", default="runs/demo", help="folder of logs and checkpoints (runs/demo)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make missing logs and statistics, continue the line's training, evaluate, and show the table on stderr."""
    from jobs.make_logs import load_world, write_day
    from pipeline.cluster.session import ray_session
    from pipeline.config.load import load_config
    from pipeline.config.urls import local_directory
    from pipeline.evaluation.evaluate import evaluate
    from pipeline.evaluation.table import metrics_table, share_of_gap
    from pipeline.ingest.units import parse_days
    from pipeline.log_passes.statistics import fit_statistics
    from pipeline.report.figures import report_evaluation
    from pipeline.trainer.model_check import check_model
    from pipeline.trainer.train_line import train

    folder = Path(local_directory(arguments.folder, "--folder"))
    config = check_model(load_config(_CONFIG, [f"root={folder}", f"logs.path={folder / 'logs'}"]))
    train_days, test_days = parse_days(_TRAIN_DAYS), parse_days(_TEST_DAY)
    world = load_world(_WORLD)
    for day in [*train_days, *test_days]:
        if not (folder / "logs" / f"dt={day}").exists():
            write_day(world, day, folder / "logs")
            logger.info("made the log of %s: %d rows", day, world.rows_per_day)
    with ray_session(config):
        if not (folder / "lines" / config.line / "statistics.json").exists():
            fit_statistics(config, train_days)
        trained = train(config, train_days, passes=1)
        result = evaluate(config, test_days, None, train_days)
    show(f"\n{metrics_table(result)}\n")
    gaps = {entry["task"]: share_of_gap(entry) for entry in result["tasks"]}
    short = [name for name in _HELD_TASKS if (gaps[name] or 0.0) < _HELD_SHARE]
    if short:
        shares = named_figures({name: gap for name, gap in gaps.items() if gap is not None})
        raise DataError(f"the model closes less than {_HELD_SHARE} of the gap to the best on {short}: {shares}")
    evaluated = report_evaluation(config.root, config.line, result)
    return {"trained": trained, "share_of_gap": gaps, "tasks": evaluated["tasks"], "figures": evaluated["figures"]}


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
