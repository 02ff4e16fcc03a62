"""Seconds of training small models with a stream each, over those of all models in one stream, on the same workers."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.workload import DAY, load, project
from pipeline.cluster.session import ray_session
from pipeline.config.project import Config
from pipeline.lineage.frozen_statistics import STATISTICS
from pipeline.lineage.line import Line
from pipeline.storage.files import Storage
from pipeline.trainer.train_line import train, train_together

_ROWS, _QUICK_ROWS = 2**17, 2**14
_MODELS = 4


def run(quick: bool) -> dict[str, Any]:
    """Train the same models both ways, within one Ray, on one worker.

    The workers have started before. The saving is the start of a stream, the lease and the checks of a command for
    every model but the first; each model reads the day.

    Args:
        quick: An eighth of the rows.
    """
    rows = _QUICK_ROWS if quick else _ROWS
    days = [DAY.isoformat()]
    with project(rows, 2**12, 2_000, workers={"num": 1}) as folder:
        config, _, _ = load(folder)
        statistics = Storage(f"{folder}/lines/main").read(STATISTICS)
        lines = {way: [_model(config, f"{way}-{k}", statistics) for k in range(_MODELS)] for way in ("alone", "group")}
        with ray_session(config):
            train(_model(config, "warm", statistics), days, passes=1)
            alone = _seconds(lambda: [train(model, days, passes=1) for model in lines["alone"]])
            together = _seconds(lambda: train_together(config, lines["group"], days, passes=1))
    return {
        "models": _MODELS,
        "rows": rows,
        "alone_s": round(alone, 1),
        "together_s": round(together, 1),
        "alone_over_together": round(alone / together, 2),
    }


def _model(config: Config, name: str, statistics: bytes) -> Config:
    line = Line.of(config.root, name)
    line.storage.write(STATISTICS, statistics)
    return config.model_copy(update={"line": name})


def _seconds(work: Callable[[], Sequence[Any]]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
