"""A small log whose users come and go, over 48 days, with the figures that the daily job takes of each day.

Users arrive, stay some days and leave; each has a rate of clicks and an age, or none. So rows, nulls, labels and ids
vary from day to day far more than a large log's, and rows of one user vary together. The model knows the items and
some of the users, and is calibrated to the newest days.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from features.holdout import HoldoutConfig
from features.profile import DayProfile
from features.schema import Schema

NUM_DAYS = 48
ONE_ROW = 20  # the day of one row
HOLDOUT = HoldoutConfig(column="user_id", share=0.2)
SCHEMA = Schema.model_validate(
    {
        "tables": [{"name": "user", "num_rows": 10, "dim": 4}],
        "features": [{"kind": "id", "name": "user_id", "table": "user"}, {"kind": "dense", "name": "age"}],
        "tasks": [{"name": "ctr", "label": "click"}, {"name": "vcr", "kind": "regression", "label": "play"}],
    }
)


@dataclass(frozen=True)
class Day:
    """Figures of a day: its profile, the metrics before its training, those of the new model and of its parent."""

    profile: DayProfile
    before: dict[str, Any]
    new: dict[str, Any]
    parent: dict[str, Any]


@dataclass
class VolatileLog:
    """The log, day by day.

    Args:
        seed: Another seed is another log.
        level: Mean label that the model has learned so far, by task.
    """

    seed: int
    level: dict[str, float] = field(default_factory=lambda: {"ctr": 0.3, "vcr": 0.4})

    def __post_init__(self) -> None:
        self.dice = np.random.default_rng(self.seed)
        self.users = np.empty((0, 3))  # id, leaning, age; no age is NaN
        self.next_id = 0
        self._arrive(20)

    def _arrive(self, number: int) -> None:
        ids = np.arange(self.next_id, self.next_id + number)
        ages = np.where(self.dice.random(number) < 0.3, np.nan, 30.0)
        self.users = np.concatenate([self.users, np.stack([ids, self.dice.normal(0, 0.7, number), ages], 1)])
        self.next_id += number

    def day(self, number: int, *, half: bool = False, shuffled: bool = False) -> Day:
        """Give the next day: users leave and come, and the model of the day before is measured, then trained."""
        wanted = 20 * 5 ** (number / NUM_DAYS)
        self.users = self.users[self.dice.random(len(self.users)) > 0.12]
        self._arrive(int(self.dice.poisson(max(wanted - len(self.users), 0.06 * wanted))))
        busy = 11 * (1 + 0.1 * np.sin(2 * np.pi * number / 7))
        rows = np.repeat(np.arange(len(self.users)), 1 + self.dice.poisson(busy, len(self.users)))
        rows = rows[:1] if number == ONE_ROW else rows[self.dice.random(len(rows)) < 0.5] if half else rows
        users, leaning, ages = self.users[rows].T
        items = self.dice.normal(0, 1.0, len(rows))
        rate = 1 / (1 + np.exp(-(leaning + items + self.dice.normal(0, 0.3) - 0.9)))
        click = (self.dice.random(len(rows)) < rate).astype(float)
        play = np.clip(rate + self.dice.normal(0, 0.25, len(rows)), 0, 1)
        if shuffled:
            click, play = self.dice.permutation(click), self.dice.permutation(play)
        score = items + 0.5 * leaning + self.dice.normal(0, 0.6, len(rows))
        return self._measured(users, ages, {"ctr": click, "vcr": play}, score)

    def _measured(self, users: np.ndarray, ages: np.ndarray, labels: dict[str, np.ndarray], score: np.ndarray) -> Day:
        columns = {
            "user_id": pa.array(users.astype(np.int64)),
            "age": pa.array(ages),
            "click": pa.array(labels["ctr"].astype(np.int64)),
            "play": pa.array(labels["vcr"]),
        }
        profile = DayProfile()
        profile.update(SCHEMA, columns, ["ctr", "vcr"], HOLDOUT)
        held, old = HOLDOUT.held_out(columns), dict(self.level)
        weight = len(users) / (len(users) + 400)
        for task, values in labels.items():
            self.level[task] += weight * (float(values.mean()) - self.level[task])
        every = np.ones(len(users), bool)
        before, parent, new = (
            {task: _metrics(task, values[where], score[where], level[task]) for task, values in labels.items()}
            for where, level in ((every, old), (held, old), (held, self.level))
        )
        return Day(profile, before, new, parent)


def _metrics(task: str, labels: np.ndarray, score: np.ndarray, level: float) -> dict[str, Any]:
    rows = len(labels)
    if not rows:
        return {"kind": "binary" if task == "ctr" else "regression", "rows": 0, "positives": 0}
    shift = np.log(level / (1 - level)) - 0.15
    predicted = 1 / (1 + np.exp(-(0.8 * score + shift)))
    variance = float(labels.var())
    found = {
        "rows": rows,
        "calibration": float(predicted.sum() / labels.sum()) if labels.sum() else None,
        "mean_prediction": float(predicted.mean()),
        "mean_label": float(labels.mean()),
        "label_variance": variance,
    }
    if task == "ctr":
        return {"kind": "binary", "positives": int(labels.sum()), "auc": _auc(labels, score)} | found
    unexplained = float(np.square(predicted - labels).mean() / variance) if variance else None
    return {"kind": "regression", "r2": None if unexplained is None else 1 - unexplained} | found


def _auc(labels: np.ndarray, score: np.ndarray) -> float | None:
    positives, negatives = score[labels > 0], score[labels == 0]
    return float((positives[:, None] > negatives).mean()) if len(positives) and len(negatives) else None
