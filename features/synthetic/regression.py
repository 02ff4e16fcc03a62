"""Two regression tasks of declared correlation: the synthetic data of the MMoE paper, as day-partitioned logs.

Source: Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", KDD 2018,
section 3.2, which PLE's figure 7 uses too.
"""

from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field

from features.synthetic.streams import ColumnStreams, Floats
from features.whole_days import write_whole_day

NUM_TASKS = 2


class RegressionConfig(BaseModel, frozen=True, extra="forbid"):
    """The two tasks and the size of their logs; equal configs give byte-equal logs.

    Args:
        seed: Seed of all random numbers.
        correlation: p, the cosine of the tasks' weight vectors w_1 and w_2.
        width: d, number of inputs of a row.
        num_sines: m, number of terms of the non-linear part.
        scale: c, length of the weight vectors.
        noise: Standard deviation of the noise of each label. The paper says N(0, 0.01); [R] that is the variance.
        rows_per_day: Number of rows of a day.
        files_per_day: Number of Parquet files of a day.
        row_group_rows: Number of rows of a row group.
    """

    seed: int = Field(ge=0)
    correlation: float = Field(ge=-1, le=1)
    width: int = Field(ge=2)
    num_sines: int = Field(default=10, ge=0)
    scale: float = Field(default=1.0, gt=0)
    noise: float = Field(default=0.1, ge=0)
    rows_per_day: int = Field(ge=1)
    files_per_day: int = Field(default=1, ge=1)
    row_group_rows: int = Field(default=65_536, ge=1)


def task_vectors(config: RegressionConfig) -> Floats:
    """Return w_1 = c u_1 and w_2 = c (p u_1 + sqrt(1 - p^2) u_2) for orthonormal u_1 and u_2; shape (2, d)."""
    drawn = np.random.default_rng([config.seed, 1]).normal(size=(config.width, 2))
    first, second = np.linalg.qr(drawn)[0].T
    p = config.correlation
    return config.scale * np.stack([first, p * first + np.sqrt(1 - p * p) * second])


def means(config: RegressionConfig, x: Floats) -> Floats:
    """Return E[y_k | x] = z_k + sum_i sin(alpha_i z_k + beta_i) with z_k = w_k x, for both tasks.

    alpha and beta are drawn from N(0, 1) once and shared by the tasks.

    Args:
        config: The configuration of the tasks.
        x: Shape (N, d).

    Returns:
        Shape (N, 2).
    """
    alpha, beta = np.random.default_rng([config.seed, 2]).normal(size=(2, config.num_sines))
    z = x @ task_vectors(config).T
    return z + np.sin(z[..., None] * alpha + beta).sum(-1)


def make_part(config: RegressionConfig, day: date, part: int) -> pa.Table:
    """Return the rows of one file of a day: x0 to x(d-1), y1, y2, their means true_y1 and true_y2, and a constant.

    The constant is the one id of the log, since a model has at least one table.
    """
    first, end = (config.rows_per_day * (part + edge) // config.files_per_day for edge in (0, 1))
    streams = ColumnStreams(config.seed, day, part)
    x = streams["x"].normal(size=(end - first, config.width)).astype(np.float32)
    truth = means(config, x.astype(np.float64))
    y = truth + config.noise * streams["noise"].normal(size=truth.shape)
    columns = {f"x{index}": x[:, index] for index in range(config.width)}
    columns |= {f"y{task + 1}": y[:, task].astype(np.float32) for task in range(NUM_TASKS)}
    columns |= {f"true_y{task + 1}": truth[:, task].astype(np.float32) for task in range(NUM_TASKS)}
    return pa.table(columns | {"constant": np.zeros(end - first, np.int8)})


def write_day(config: RegressionConfig, day: date, directory: str | Path) -> list[Path]:
    """Write a day, all of it or nothing; see `features.whole_days.write_whole_day`."""
    parts = (make_part(config, day, part) for part in range(config.files_per_day))
    return write_whole_day(parts, day, Path(directory), config.row_group_rows)
