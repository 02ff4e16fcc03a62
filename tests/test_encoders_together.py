"""Several encoders of one reading: a unit is decoded once, and the encoders' lanes stay in step."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from small_units import read_plan_of, unit_entries

from features.encoded_rows import EncodedRows
from features.encoding import Encoder
from features.measured_columns import MeasuredColumns
from features.schema import Schema
from features.vocabulary import Vocabulary
from pipeline.evaluation.resident_models import by_encoder
from pipeline.ingest import datasource
from pipeline.ingest.datasource import Parcel, read_parcels
from pipeline.ingest.parts import Part
from pipeline.ingest.plan import RunPlan, StreamStart
from pipeline.ingest.units import list_days
from pipeline.storage.files import Storage

DAY = "2026-03-01"
SIZES = [[[40, 30], [25]]]


def encoder_of(salt: str) -> Encoder:
    schema = {
        "hash_salt": salt,
        "tables": [{"name": "video", "num_rows": 50, "dim": 4}],
        "features": [{"kind": "id", "name": "video", "table": "video"}],
        "tasks": [{"name": "ctr", "label": "click"}],
    }
    return Encoder(Schema.model_validate(schema), None)


def same(one: EncodedRows | None, other: EncodedRows | None) -> bool:
    assert one is not None
    assert other is not None
    pairs = zip(one.arrays().items(), other.arrays().items(), strict=True)
    return all(name == again and np.array_equal(a, b, equal_nan=True) for (name, a), (again, b) in pairs)


def test_a_unit_is_decoded_once(write_log: Callable[..., Storage], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a second decoding for the second encoder, and rows that the wrong encoder has encoded."""
    logs, encoders = write_log(SIZES), [encoder_of("a"), encoder_of("b")]
    monkeypatch.setattr(ray, "get", lambda kept: kept)
    plan, units = read_plan_of(logs, encoders[0], max_rows=10)
    plan = replace(plan, further=(encoders[1],))
    decoded = []
    read = datasource.RowGroupReader.read
    monkeypatch.setattr(datasource.RowGroupReader, "read", lambda self, unit: decoded.append(unit) or read(self, unit))
    entries = [replace(entry, encoder=number) for entry in unit_entries(units) for number in (0, 1)]
    found = list(read_parcels(plan, entries))
    assert decoded == list(units)
    for number, encoder in enumerate(encoders):
        alone = read_parcels(read_plan_of(logs, encoder, max_rows=10)[0], unit_entries(units))
        for parcel, expected in zip(found[number::2], alone, strict=True):
            assert parcel.rows is not None
            assert expected.rows is not None
            assert same(parcel.rows, expected.rows)
    assert not same(found[0].rows, found[1].rows)  # the control


def test_the_plan_has_the_encoders_of_each_part(write_log: Callable[..., Storage]) -> None:
    """Catches a part whose rows come by the encoders of another, and parts that were done and are read again."""
    logs = write_log(SIZES)
    (log,) = list_days(logs, [DAY], 10)
    parts = (Part(DAY, log, encoders=(0,)), Part(DAY, log, encoders=(1, 2)))
    ingest: Any = replace_shuffle()
    plan = RunPlan(logs, parts, 1, encoder_of("a"), ingest, 1, (StreamStart,), further=("b", "c"))
    for done in (0, 1):
        segments = plan.segments([StreamStart(done=done)], 2)
        assert [segment.header.place for segment in segments] == [0, 1][done:]
        planned = [entry for bundle in plan.bundles(segments, 2) for entry in bundle if entry.kind == "unit"]
        for number, part in enumerate(segment.part for segment in segments):
            own = [(entry.unit, entry.encoder) for entry in planned if entry.segment == number]
            assert sorted(own) == [(unit, code) for unit in range(len(log.units)) for code in part.encoders]
            firsts = own[:: len(part.encoders)]
            assert own == [(unit, code) for unit, _ in firsts for code in part.encoders]  # side by side


def replace_shuffle() -> Any:
    from pipeline.config.ingest import IngestConfig, ShuffleConfig

    return IngestConfig(shuffle=ShuffleConfig(units=False, rows=False))


def parcels_of(*, bad: int | None = None) -> Iterator[Parcel]:
    """Six units for three encoders; one of them may be refused by the second."""
    for unit in range(6):
        for code in range(3):
            if (unit, code) == (bad, 1):
                yield Parcel("bad", 0, unit, text="refused")
            else:
                yield Parcel("unit", 0, unit, rows=encoder_of("a").empty())


def test_lanes_are_dealt_in_step() -> None:
    """Catches a lane that gets another encoder's unit, or runs ahead so that a day's units wait in memory."""
    taken = [0]

    def counted() -> Iterator[Parcel]:
        for parcel in parcels_of():
            taken[0] += 1
            yield parcel

    lanes = by_encoder(counted(), 3)
    for unit in range(6):
        assert [next(lane).unit for lane in lanes] == [unit] * 3
        assert taken[0] == 3 * (unit + 1)
    assert [next(lane, None) for lane in lanes] == [None] * 3


def test_a_unit_that_one_encoder_refuses() -> None:
    """Catches models that are held against each other on other rows, and lanes that fall out of step."""
    lanes = [list(lane) for lane in zip(*by_encoder(parcels_of(bad=2), 3), strict=True)]
    assert [[parcel.unit for parcel in unit] for unit in lanes] == [[unit] * 3 for unit in range(6)]
    assert [{parcel.rows is None for parcel in unit} for unit in lanes] == [{unit == 2} for unit in range(6)]


def test_users_do_not_depend_on_the_vocabulary() -> None:
    """Catches resamples of two checkpoints that draw other users, since their vocabularies give other rows."""
    mapping = {"kind": "vocabulary", "min_count": 1, "keep_days": 1, "tail_rows": 4}
    schema = Schema.model_validate(
        {
            "tables": [{"name": "user", "num_rows": 50, "dim": 4, "id_mapping": mapping}],
            "features": [{"kind": "id", "name": "user", "table": "user"}],
            "tasks": [{"name": "ctr", "label": "click"}],
        }
    )
    empty = Vocabulary.empty(schema.tables[0])
    rule: Any = schema.vocabularies["user"]
    keys = np.sort(np.random.default_rng(1).integers(0, 2**63, 20).astype(np.uint64))
    full = empty.update(rule, DAY, empty.seen(rule, keys, np.ones(20, np.int64))).vocabulary
    columns = {"user": pa.array([5, None, 7, 5, None]), "click": pa.array([0, 1, 0, 1, 0])}
    measured = MeasuredColumns(users="user")
    found = [
        Encoder(schema, None, vocabularies={"user": vocabulary}, measured=measured).encode(columns).users
        for vocabulary in (empty, full)
    ]
    assert found[0] is not None
    assert found[1] is not None
    assert np.array_equal(found[0], found[1])
    assert found[0][0] == found[0][3] != found[0][2]
    assert (found[0][[1, 4]] == 0).all()
    assert Encoder(schema, None, vocabularies={"user": full}).encode(columns).users is None
