"""The two regression tasks of the MMoE paper: their law by hand, their correlation, and equal logs of equal configs."""

from datetime import date
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from features.errors import ConfigError
from features.synthetic.regression import RegressionConfig, make_part, means, task_vectors, write_day
from jobs.make_logs import load_world

DAY = date(2026, 3, 1)
WORLD = RegressionConfig(seed=3, correlation=0.5, width=6, rows_per_day=4000, files_per_day=2)


@pytest.mark.parametrize("correlation", [-1.0, 0.0, 0.4, 1.0])
def test_the_tasks_are_as_correlated_as_declared(correlation: float) -> None:
    """Catches p for its square, and vectors that are not of length c."""
    first, second = task_vectors(WORLD.model_copy(update={"correlation": correlation, "scale": 2.0}))
    assert first @ second / 4 == pytest.approx(correlation)
    assert np.linalg.norm(first) == pytest.approx(2)
    assert np.linalg.norm(second) == pytest.approx(2)


def test_means_by_a_loop() -> None:
    """Catches a sum over the wrong axis, and sines of another task's product."""
    x = np.random.default_rng(1).normal(size=(3, 6))
    alpha, beta = np.random.default_rng([3, 2]).normal(size=(2, 10))
    for row, found in zip(x, means(WORLD, x), strict=True):
        for w, value in zip(task_vectors(WORLD), found, strict=True):
            z = sum(a * b for a, b in zip(w, row, strict=True))
            assert value == pytest.approx(z + sum(np.sin(a * z + b) for a, b in zip(alpha, beta, strict=True)))


def test_labels_are_means_with_noise() -> None:
    """Catches a variance of 0.1 for a deviation of it, noise that both tasks share, inputs that are not standard."""
    table = make_part(WORLD, DAY, 0).to_pandas()
    noise = table[["y1", "y2"]].to_numpy() - table[["true_y1", "true_y2"]].to_numpy()
    assert noise.std(0) == pytest.approx([0.1, 0.1], rel=0.1)
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.1
    x = table[[f"x{index}" for index in range(6)]].to_numpy()
    assert x.mean(0) == pytest.approx(np.zeros(6), abs=0.1)
    assert x.std(0) == pytest.approx(np.ones(6), rel=0.1)


def test_equal_worlds_give_equal_logs_and_other_days_others(tmp_path: Path) -> None:
    """Catches a seed that is not used, and days or files that repeat each other's rows."""
    first, second = write_day(WORLD, DAY, tmp_path / "a"), write_day(WORLD, DAY, tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    parts = [pq.read_table(path)["x0"].to_numpy() for path in [*first, *write_day(WORLD, date(2026, 3, 2), tmp_path)]]
    assert [len(part) for part in parts] == [2000] * 4
    assert len(np.unique(np.concatenate(parts))) > 7900


def test_a_world_that_is_none_is_refused(tmp_path: Path) -> None:
    """Catches a traceback where a setting is wrong."""
    path = tmp_path / "world.yaml"
    path.write_text("{seed: 1, correlation: 0.5, width: 4, rows_per_day: 10}")
    assert load_world(str(path), ["correlation=0.2", "width=8"]) == RegressionConfig(
        seed=1, correlation=0.2, width=8, rows_per_day=10
    )
    with pytest.raises(ConfigError, match="correlation Input should be less than or equal to 1"):
        load_world(str(path), ["correlation=2.0"])
