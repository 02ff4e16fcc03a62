"""A second pass over a day trains as a second day of the same rows."""

import shutil
from pathlib import Path

import torch
from small_runs import DAYS, logs, make_config, weights

from pipeline.config.project import Config
from pipeline.log_passes.statistics import fit_statistics
from pipeline.trainer.train_line import train

__all__ = ["logs"]  # a fixture


def _trained(config: Config, days: list[str], passes: int, folder: Path) -> dict[str, torch.Tensor]:
    fit_statistics(config, days[:1])
    return weights(config, train(config, days, passes)["checkpoint"], folder)


def test_a_second_pass_begins_the_day_again(logs: Path, local_training: None, tmp_path: Path) -> None:
    """Catches accumulators that shrink between two days, and not between two passes over one day."""
    shutil.copytree(logs / f"dt={DAYS[0]}", tmp_path / f"logs/dt={DAYS[0]}")
    shutil.copytree(logs / f"dt={DAYS[0]}", tmp_path / f"logs/dt={DAYS[1]}")
    in_order = {"shuffle": {"units": False, "rows": False}, "unit": {"max_rows": 1000}, "batch_size": 256}
    optimizer = {
        "tables": {"learning_rate": 0.1, "keep_per_day": 0.5},
        "dense": {"learning_rate": 0.01},
        "schedule": {"day_warmup_steps": 3},
    }
    sections = {"ingest": in_order, "optimizer": optimizer, "workers": {"num": 1, "timeout_s": 60}}
    ways = {"passes": (DAYS[:1], 2), "days": (DAYS, 1)}
    found = {
        name: _trained(make_config(tmp_path / "logs", tmp_path / name, **sections), *way, tmp_path)
        for name, way in ways.items()
    }
    assert set(found["passes"]) == set(found["days"])
    assert [name for name, tensor in found["days"].items() if not torch.equal(found["passes"][name], tensor)] == []
