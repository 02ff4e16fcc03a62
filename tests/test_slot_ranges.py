"""Slots of a log against those that slot_bias declares: none is given another one's logit in silence."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from records import manifest_of
from small_runs import make_config

from features.errors import DataError
from features.schema import Schema
from models.slot_bias import SlotBias, SlotBiasConfig
from pipeline.config.project import Config
from pipeline.ingest.units import DayLog, Units, check_days
from pipeline.lineage.compatible import check_same_schema
from pipeline.lineage.manifest import declared
from pipeline.storage.files import Storage
from pipeline.trainer.train_days import check_slots

DAY = "2026-03-01"
SCHEMA = Schema.model_validate(
    {
        "slot": "place",
        "tables": [{"name": "users", "num_rows": 10, "dim": 4}],
        "features": [{"name": "user", "kind": "id", "table": "users"}],
        "tasks": [{"name": "ctr", "label": "click"}],
    }
)


def _listed(folder: Any, files: list[list[int | None]], **options: Any) -> DayLog:
    logs = Storage(str(folder))
    for number, slots in enumerate(files):
        data = io.BytesIO()
        rows = pa.table({"place": pa.array(slots, pa.int32()), "user": [1] * len(slots), "click": [0] * len(slots)})
        pq.write_table(rows, data, row_group_size=2, **options)
        logs.write(f"dt={DAY}/part-{number}.parquet", data.getvalue())
    (day,) = check_days(logs, [DAY], 100, SCHEMA, ["place", "user", "click"])
    return day


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([[1, 2, 3]], (1, 3)),
        ([[2, None], [None, None, 7, 0]], (0, 7)),
        ([[None], [4]], (4, 4)),
        ([[None]], None),
        ([[], [-1, 2], [0]], (0, 2)),
    ],
)
def test_the_range_of_a_day(tmp_path: Any, files: list[list[int | None]], expected: Any) -> None:
    """Catches a range of the first file, or of the first row group, alone."""
    assert _listed(tmp_path, files).slots == expected


def test_a_day_without_statistics(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Catches slots that nobody has looked at, and nobody says so."""
    day = _listed(tmp_path, [[1, 2]], write_statistics=False)
    assert day.slots is None
    check_slots(_config(tmp_path, num_slots=1), [day])
    assert caplog.messages == [f"{DAY}: the slots of 1 files are not checked, since they have no statistics of them"]


def test_one_file_without_statistics(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Catches one file, or one that is empty, that turns off the check of all others."""
    listed = _listed(tmp_path, [[0, 9]])
    logs, data = Storage(str(tmp_path)), io.BytesIO()
    rows = pa.table({"place": pa.array([1], pa.int32()), "user": [1], "click": [0]})
    pq.write_table(rows, data, write_statistics=False)
    logs.write(f"dt={DAY}/part-8.parquet", data.getvalue())
    data = io.BytesIO()
    pq.write_table(pa.table({"place": pa.nulls(1), "user": [1], "click": [0]}), data)
    logs.write(f"dt={DAY}/part-9.parquet", data.getvalue())
    (day,) = check_days(logs, [DAY], 100, SCHEMA, ["place", "user", "click"])
    assert (day.slots, day.slots_unchecked) == ((0, 9), 1) != (listed.slots, listed.slots_unchecked)
    with pytest.raises(DataError, match="the log's slots are 0 to 9"):
        check_slots(_config(tmp_path, num_slots=3), [day])
    assert caplog.messages == [f"{DAY}: the slots of 1 files are not checked, since they have no statistics of them"]


def _config(folder: Any, **bias: Any) -> Config:
    config = make_config(folder, folder)
    slot_bias = SlotBiasConfig.model_validate({"tasks": ["ctr"]} | bias)
    return config.model_copy(update={"model": config.model.model_copy(update={"slot_bias": slot_bias})})


@pytest.mark.parametrize(
    ("bias", "slots", "is_refused"),
    [
        ({"num_slots": 3}, (1, 3), True),  # slots 2 and 3 would be one
        ({"num_slots": 3, "first_slot": 1}, (1, 3), False),
        ({"num_slots": 4}, (1, 3), False),
        ({"num_slots": 3, "first_slot": 1}, (0, 2), True),
        ({"num_slots": 3, "beyond_last": "share"}, (0, 300), False),
        ({"num_slots": 3, "first_slot": 1, "beyond_last": "share"}, (0, 300), True),
        ({"num_slots": 3, "first_slot": 1}, None, False),  # no known one
    ],
)
def test_slots_outside_of_the_range(tmp_path: Any, bias: Any, slots: tuple[int, int] | None, is_refused: bool) -> None:
    """Catches `num_slots: 3` on a log that counts from 1, whose slots 2 and 3 get one logit in silence."""
    config, day = _config(tmp_path, **bias), DayLog(DAY, Units(()), {}, slots=slots)
    if not is_refused:
        check_slots(config, [day])
        return
    assert slots is not None
    with pytest.raises(DataError) as caught:
        check_slots(config, [day])
    first = bias.get("first_slot", 0)
    assert str(caught.value) == (
        f"{DAY}: the log's slots are {slots[0]} to {slots[1]}, model.slot_bias has {first} to {first + 2}: set "
        "beyond_last: share to let the last one stand for all beyond it, or on a new line first_slot and num_slots to "
        "the log's"
    )


def test_counting_from_1_by_hand() -> None:
    """Catches a first slot that has the logit of an unknown one, and an unknown one that has the first slot's."""
    bias = SlotBias([0], 3, first_slot=1).eval()
    bias.scores_known = True
    bias.weight.data[0, :, 0] = torch.tensor([9.0, 1, 2, 3])
    sparse: Any = None
    outputs = bias(torch.zeros(6, 1), torch.tensor([-1, 0, 1, 2, 3, 4]), sparse)
    assert outputs.flatten().tolist() == [9, 9, 1, 2, 3, 3]
    (part,) = bias.parts(["ctr"], None)
    assert [name for _, name in part.axes[1]] == ["missing", "1", "2", "3 and beyond"]


def test_keys_that_are_no_other_model(tmp_path: Any) -> None:
    """Catches an evaluation with known slots that is refused, since the model was trained without that key."""
    trained = _config(tmp_path, num_slots=3)
    manifest = manifest_of(config=declared(trained), schema_fingerprint=trained.log_schema.fingerprint())
    check_same_schema(_config(tmp_path, num_slots=3, when_scoring="known", beyond_last="share"), manifest)
    with pytest.raises(DataError, match="another model section"):
        check_same_schema(_config(tmp_path, num_slots=3, first_slot=1), manifest)
