"""Admission on a real Ray: ids counted as the encoder looks them up, and what data tasks then share of a vocabulary."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from features.encoding import Encoder
from features.errors import DataError
from features.hashing import hash_ids, salt_of
from features.id_counts import IdCounts, merge_counts
from features.vocabulary import RowIndex, Vocabulary
from pipeline.config.load import parse_config
from pipeline.config.project import Config
from pipeline.ingest.bundles import group_bundles
from pipeline.ingest.datasource import ReadPlan, UnitDatasource, unpack
from pipeline.ingest.parts import whole_days
from pipeline.ingest.plan import RunPlan, StreamStart
from pipeline.ingest.units import DayLog, list_days
from pipeline.log_passes import count_partitions
from pipeline.log_passes.admission import admit
from pipeline.log_passes.count_partitions import Counts, count_by_partition, num_partitions
from pipeline.log_passes.reduce_units import MergedRuns
from pipeline.log_passes.unit_work import CountIds
from pipeline.storage.files import Storage

DAYS = ["2026-03-01", "2026-03-02"]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import this file


def make_config(logs: Storage, num_rows: int = 100, **ingest: Any) -> Config:
    """Two tables with vocabularies, of which one is read by two features, and a hashed one, all of the same columns."""
    mapping = {"kind": "vocabulary", "min_count": 2, "keep_days": 1, "tail_rows": 4}
    return parse_config(
        {
            "name": "admission",
            "root": "unused",
            "logs": {"path": logs.url},
            "schema": {
                "tables": [
                    {"name": "video", "num_rows": num_rows, "dim": 4, "id_mapping": mapping},
                    {"name": "slot", "num_rows": 9, "dim": 4, "id_mapping": mapping},
                    {"name": "hashed", "num_rows": 50, "dim": 4},
                ],
                "features": [
                    {"kind": "id", "name": "video", "table": "video"},
                    {"kind": "sequence", "name": "history", "table": "video", "max_length": 2},
                    {"kind": "id", "name": "slot", "table": "slot"},
                    {"kind": "id", "name": "again", "column": "video", "table": "hashed"},
                ],
                "tasks": [{"name": "click", "label": "click"}],
            },
            "model": {
                "network": {"kind": "cgc", "expert_layers": [4], "num_experts_per_task": 1, "num_shared_experts": 1},
                "towers": [],
            },
            "optimizer": {"tables": {"learning_rate": 0.1}, "dense": {"learning_rate": 0.01}},
            "ingest": {"unit": {"max_rows": 30}} | ingest,
        },
        "test",
    )


@pytest.fixture(scope="module")
def logs(write_log: Callable[..., Storage]) -> Storage:
    """Two days, in row groups of which some are cut into several units."""
    return write_log([[[40, 70], [5]], [[61, 1]]])


def day_logs(config: Config, days: list[str] = DAYS) -> list[DayLog]:
    return list_days(Storage(config.logs.path), days, config.ingest.unit.max_rows)


def plain_counts(logs: Storage, days: list[str]) -> dict[str, Counter[int]]:
    """Count the ids of a log by table, one row after the other."""
    found = {"video": Counter(), "slot": Counter()}
    for day in days:
        for file in sorted(Path(logs.path(f"dt={day}")).glob("*.parquet")):
            for row in pq.read_table(file).to_pylist():
                found["video"].update([row["video"]] if row["video"] is not None else [])
                found["video"].update(video for video in row["history"][-2:] if video is not None)
                found["slot"][row["slot"]] += 1
    return found


def by_key(config: Config, counts: Counter[int]) -> dict[int, int]:
    keys = hash_ids(pa.array(list(counts), pa.int64()), salt_of(config.log_schema.hash_salt))
    return dict(zip(keys.tolist(), counts.values(), strict=True))


def _same(counts: Counts) -> Counts:
    return counts


def count_ids(config: Config, logs: Sequence[DayLog]) -> dict[str, IdCounts]:
    """Return all counts by table, which no process of a run ever holds together."""
    work = CountIds(Storage(config.logs.path), config.log_schema, config.ingest.on_bad_unit == "quarantine")
    finish = [_same] * num_partitions(sum(len(log.units) for log in logs))
    parts = list(count_by_partition(logs, work, finish, config.ingest))
    return {name: merge_counts(*(part[name] for part in parts)) for name in config.log_schema.vocabularies}


@pytest.mark.ray
@pytest.mark.parametrize("days", [DAYS[:1], DAYS[1:], DAYS])
def test_ids_are_counted_as_they_are_looked_up(logs: Storage, ray_cluster: None, days: list[str]) -> None:
    """Catches ids of another day or of the cut end of a list, nulls, units that are left out or counted twice, a table
    whose second feature is not counted, and a hashed table that is.
    """
    config = make_config(logs)
    found = count_ids(config, day_logs(config, days))
    expected = plain_counts(logs, days)
    assert set(found) == {"video", "slot"}
    for table, (keys, counts) in found.items():
        assert dict(zip(keys.tolist(), counts.tolist(), strict=True)) == by_key(config, expected[table])
        assert (np.diff(keys.astype(object)) > 0).all()
        assert counts.dtype == np.int64


@pytest.mark.ray
@pytest.mark.parametrize("units_per_part", [16, 2])
def test_days_are_admitted(
    logs: Storage, ray_cluster: None, units_per_part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an admission that forgets yesterday's vocabulary, takes another day's name, or is not the same again; or
    that is another one if its ids are counted in parts.
    """
    monkeypatch.setattr(count_partitions, "UNITS_PER_PARTITION", units_per_part)
    config = make_config(logs)
    table = config.log_schema.tables[0]
    first = admit(config, {}, day_logs(config, DAYS[:1]))
    expected = plain_counts(logs, DAYS[:1])["video"]
    frequent = by_key(config, Counter({video: count for video, count in expected.items() if count >= 2}))
    assert 0 < len(frequent) < 96
    assert set(first.vocabularies["video"].keys.tolist()) == set(frequent)
    assert first.figures["video"]["seen"] == len(expected)
    assert set(first.vocabularies["video"].last_seen.tolist()) == {int(np.datetime64(DAYS[0], "D").astype(int))}
    second = admit(config, first.vocabularies, day_logs(config, DAYS[1:]))
    counts = count_ids(config, day_logs(config, DAYS[1:]))["video"]
    mapping, start = config.log_schema.vocabularies["video"], first.vocabularies["video"]
    by_hand = start.update(mapping, DAYS[1], start.seen(mapping, *counts))
    assert second.vocabularies["video"].to_arrow() == by_hand.vocabulary.to_arrow()
    assert second.rows_to_reset["video"].tolist() == by_hand.rows_to_reset.tolist()
    assert len(second.rows_to_reset["video"]) > 0
    assert second.figures["video"] == by_hand.figures
    again = admit(config, first.vocabularies, day_logs(config, DAYS[1:]))
    assert again.vocabularies["video"].to_arrow() == second.vocabularies["video"].to_arrow()
    assert Vocabulary.empty(table).to_arrow() != first.vocabularies["video"].to_arrow()


@pytest.mark.ray
def test_a_table_that_has_grown_admits_more(logs: Storage, ray_cluster: None) -> None:
    """Catches rows that a larger table has and nobody is given, and a smaller table that is not refused."""
    config, larger = make_config(logs, 50), make_config(logs, 300)
    first = admit(config, {}, day_logs(config, DAYS[:1]))
    assert len(first.vocabularies["video"]) == 46
    assert first.figures["video"]["no_room"] > 0
    second = admit(larger, first.vocabularies, day_logs(larger, DAYS[1:]))
    assert second.figures["video"]["no_room"] == second.figures["video"]["evicted"] == 0
    assert second.vocabularies["video"].num_rows == 300
    assert set(first.vocabularies["video"].keys.tolist()) <= set(second.vocabularies["video"].keys.tolist())
    with pytest.raises(DataError, match="can grow, not shrink"):
        admit(config, second.vocabularies, day_logs(config, DAYS[1:]))


@pytest.mark.ray
def test_a_bad_unit_is_not_counted(write_log: Callable[..., Storage], ray_cluster: None) -> None:
    """Catches a unit that training would quarantine and that ends the run before it, or one that is passed over in
    silence where it should end it.
    """
    logs = write_log([[[20], [20]], [[10]]])
    config = make_config(logs)
    listed = day_logs(config)
    file = Path(logs.path(f"dt={DAYS[0]}/part-1.parquet"))
    data = bytearray(file.read_bytes())
    data[4:400] = bytes(396)
    file.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"part-1\.parquet, row group 0"):
        count_ids(config, listed)
    lenient = make_config(logs, on_bad_unit="quarantine")
    file.rename(file.with_suffix(".away"))
    expected = by_key(config, plain_counts(logs, DAYS)["video"])
    file.with_suffix(".away").rename(file)
    keys, counts = count_ids(lenient, listed)["video"]
    assert dict(zip(keys.tolist(), counts.tolist(), strict=True)) == expected


@given(parts=st.lists(st.dictionaries(st.integers(0, 30), st.integers(1, 3), max_size=20), max_size=20))
def test_parts_are_summed_in_little_memory(parts: list[dict[int, int]]) -> None:
    """Catches a part that is lost, and a driver that holds all parts of a day at once."""
    runs, expected = MergedRuns(merge_counts, lambda found: len(found[0])), Counter()
    for part in parts:
        keys = sorted(part)
        runs.add((np.array(keys, np.uint64), np.array([part[key] for key in keys], np.int64)))
        expected.update(part)
        assert sum(len(keys) for keys, _ in runs._runs) <= 2 * len(expected)
    keys, counts = runs.total() or (np.empty(0), np.empty(0))
    assert dict(zip(keys.tolist(), counts.tolist(), strict=True)) == expected


# --- What data tasks share ---


def _large_vocabulary(config: Config, num_ids: int) -> Vocabulary:
    table = config.log_schema.tables[0]
    keys = np.sort(hash_ids(pa.array(np.arange(num_ids)), salt_of(config.log_schema.hash_salt)))
    empty, mapping = Vocabulary.empty(table), config.log_schema.vocabularies["video"]
    return empty.update(mapping, DAYS[0], empty.seen(mapping, keys, np.full(num_ids, 2, np.int64))).vocabulary


def _encoder(config: Config, num_ids: int) -> Encoder:
    vocabularies = {"video": _large_vocabulary(config, num_ids), "slot": Vocabulary.empty(config.log_schema.tables[1])}
    return Encoder(config.log_schema, None, vocabularies=vocabularies)


def _where_arrays_are(plan: ReadPlan) -> list[tuple[bool, bool, str]]:
    """Return for each array of the index: can be written to, owns its memory, file that is mapped there."""
    index: RowIndex = plan.encoder._indexes["video"]
    return [
        (array.flags.writeable, array.flags.owndata, _mapping(array.__array_interface__["data"][0]))
        for array in (index.keys, index.rows, index.starts)
    ]


def _mapping(address: int) -> str:
    """Return the file that is mapped at an address of this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= address < last:
            return " ".join(line.split()[1:])
    return ""


@pytest.mark.ray
def test_data_tasks_share_one_copy(logs: Storage, ray_cluster: None) -> None:
    """Catches a vocabulary that is copied into every data task: of 10 million ids, 180 MB for each of a node's."""
    config = make_config(logs, num_rows=60_000)
    plan = ReadPlan(logs, _encoder(config, 50_000), (), 1, False)
    reference = ray.put(plan)
    look: Any = ray.remote(lambda wrapped: _where_arrays_are(ray.get(wrapped[0])))
    for found in ray.get([look.remote([reference]) for _ in range(2)]):
        for writeable, owned, mapped in found:
            assert not writeable
            assert not owned
            assert "rw-s" in mapped or "r--s" in mapped, mapped  # shared
            assert "plasma" in mapped or "/dev/shm" in mapped, mapped
    assert all(writeable and "plasma" not in mapped for writeable, _, mapped in _where_arrays_are(plan))


@pytest.mark.ray
def test_the_stream_is_encoded_with_it(logs: Storage, ray_cluster: None) -> None:
    """Catches data tasks that hash, or look up in another vocabulary than the run's."""
    config = make_config(logs, num_rows=60_000)
    encoder, listed = _encoder(config, 100), day_logs(config, DAYS[:1])
    plan = RunPlan(logs, whole_days(listed), 1, encoder, config.ingest, 1, (StreamStart,))
    segments = plan.segments(plan.begin_attempts(), 1)
    read_plan = plan.read_plan(segments)
    dataset = ray.data.read_datasource(UnitDatasource(read_plan, group_bundles(plan.bundles(segments, 1))))
    blocks = dataset.iter_batches(batch_size=1, batch_format="pyarrow")
    parcels = [parcel for block in blocks for parcel in unpack(block)]
    found = np.sort(np.concatenate([parcel.rows.ids[0] for parcel in parcels if parcel.rows is not None]))
    videos = [video for video in range(115) if video % 5 != 4]
    keys = hash_ids(pa.array(videos), salt_of(config.log_schema.hash_salt))
    expected = _large_vocabulary(config, 100).lookup(keys)
    assert found.tolist() == sorted(expected.tolist())
    assert (expected < 4).sum() == 12  # of the videos from 100 on
