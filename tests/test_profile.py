"""A day's profile: the same however the day is cut, and ids that are compared between days as if all were kept."""

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.holdout import HoldoutConfig
from features.profile import DayProfile, IdSketch
from features.schema import Schema

SCHEMA = Schema.model_validate(
    {
        "tables": [{"name": "video", "num_rows": 10, "dim": 4}],
        "features": [{"kind": "id", "name": "video", "table": "video"}, {"kind": "dense", "name": "age"}],
        "tasks": [
            {"name": "ctr", "label": "click"},
            {"name": "vcr", "kind": "regression", "label": "play", "space": "click == 1"},
        ],
    }
)


def _columns(rows: list[tuple[Any, Any, Any, Any]]) -> dict[str, pa.Array]:
    types = {"video": pa.int64(), "age": pa.float64(), "click": pa.int8(), "play": pa.float64()}
    return {name: pa.array([row[place] for row in rows], kind) for place, (name, kind) in enumerate(types.items())}


_ROWS = st.lists(
    st.tuples(
        st.none() | st.integers(0, 30),
        st.none() | st.just(float("nan")) | st.integers(0, 3).map(float),
        st.none() | st.integers(0, 1),
        st.none() | st.integers(0, 9).map(float),
    ),
    min_size=1,
    max_size=40,
)


@given(rows=_ROWS, cuts=st.lists(st.integers(0, 40), max_size=4))
def test_a_profile_does_not_depend_on_how_the_day_is_cut(rows: list[Any], cuts: list[int]) -> None:
    """Catches a figure that is a mean of means, a null that is counted as a label, or a row outside the space."""
    whole, parts = DayProfile(), DayProfile()
    whole.update(SCHEMA, _columns(rows), ["ctr", "vcr"])
    ends = [*sorted(cut for cut in cuts if cut < len(rows)), len(rows)]
    for first, last in zip([0, *ends], ends, strict=False):
        part = DayProfile()
        if last > first:
            part.update(SCHEMA, _columns(rows[first:last]), ["ctr", "vcr"])
        parts.merge(DayProfile.from_json(json.loads(json.dumps(part.to_json()))))
    assert parts.to_json() == whole.to_json()
    assert whole.rows == len(rows)
    assert whole.nulls["age"] == sum(age is None or math.isnan(age) for _, age, _, _ in rows)
    assert whole.labels["ctr"][0] == sum(click is not None for *_, click, _ in rows)
    inside = [play for *_, click, play in rows if click == 1 and play is not None]
    assert whole.labels["vcr"] == (len(inside), sum(inside), sum(play * play for play in inside))
    only = DayProfile()
    only.update(SCHEMA, _columns(rows), ["ctr"])
    assert set(only.labels) == {"ctr"}  # a label that is not final yet is not looked at


@pytest.mark.parametrize("num_ids", [500, 40_000])
def test_the_share_of_unseen_ids(num_ids: int) -> None:
    """Catches samples of two days that are of different ids, and a share of ids where one of rows is asked for."""
    dice = np.random.default_rng(2)
    column = {"age": pa.array([1.0]), "click": pa.array([1]), "play": pa.array([1.0])}
    days = []
    for day in range(4):
        ids = dice.zipf(1.3, 60_000) % num_ids + day * num_ids // 10  # a tenth of them is new each day
        days.append(ids)
    sketches = []
    for ids in days:
        profile = DayProfile()
        rest = {name: pa.array(np.repeat(values.to_numpy(), len(ids))) for name, values in column.items()}
        profile.update(SCHEMA, {"video": pa.array(ids)} | rest, ["ctr"])
        sketches.append(profile.ids["video"])
        assert len(sketches[-1].hashes) == min(1024, len(np.unique(ids)))
    exact = float(np.mean(~np.isin(days[3], np.concatenate(days[:3]))))
    found = sketches[3].unseen(sketches[:3])
    assert found is not None
    assert abs(found - exact) < (1e-12 if num_ids <= 1024 else 0.06)
    assert 0.01 < exact < 0.9
    assert sketches[3].unseen([]) is None
    assert IdSketch().unseen(sketches) is None


@given(share=st.floats(0.01, 0.5), salt=st.text(max_size=5))
def test_who_is_held_out(share: float, salt: str) -> None:
    """Catches a user of whom some rows are held out and some are trained, and a share of rows instead of users."""
    holdout = HoldoutConfig(column="user", share=share, salt=salt)
    users = np.arange(20_000)
    held = holdout.held_out({"user": pa.array(users)})
    assert abs(held.mean() - share) < 0.02
    again = holdout.held_out({"user": pa.chunked_array([pa.array([7, None, 19_999]), pa.array([7])])})
    assert again.tolist() == [held[7], False, held[19_999], held[7]]
