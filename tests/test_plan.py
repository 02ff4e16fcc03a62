"""Dry runs against real ranks: their memory, what fits and what does not, and the smallest number of workers."""

from typing import Any

import numpy as np
import pytest
import torch
from dupn_models import make_dupn_config
from plan_runs import DIM, USER_ROWS, Allocate, plan_config

from features.errors import ConfigError
from features.statistics import Statistics
from pipeline.config.project import Config
from pipeline.trainer import row_memory, table_planner
from pipeline.trainer.dry_run import DryRun, Plan, Workers, used_bytes
from pipeline.trainer.row_memory import measure_rows
from pipeline.trainer.table_planner import device_load, expected_ids

SHARDINGS: list[Any] = [
    "row_wise",
    "table_wise",
    "data_parallel",
    {"user": "row_wise", "video": "data_parallel"},
    {"user": "table_wise", "video": "row_wise"},
    None,
]
PLENTY = 10**11


def plan(config: Config, num: int, memory: int = PLENTY, device: str = "cpu") -> Plan:
    return DryRun(config).plan(Workers(num, 8, device, memory))


def really(run_ranks: Any, config: Config, num: int) -> list[int]:
    """The bytes that each of the ranks allocates."""
    return [result["bytes"] for result in run_ranks(Allocate(config), num)]


# --- Memory ---


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_the_memory_is_that_of_a_run(run_ranks: Any, num_ranks: int, sharding: Any) -> None:
    """Catches weights, optimizer state or a dense part that a plan forgets, counts twice, or puts on another rank."""
    config = plan_config(sharding)
    planned = plan(config, num_ranks)
    for rank, real in zip(planned.ranks, run_ranks(Allocate(config), num_ranks), strict=True):
        assert rank.state == pytest.approx(real["bytes"], rel=0.1)
        held = {name: {"model": m.weights, "tables": m.optimizer} for name, m in rank.tables.items() if m.weights}
        real_tables = {name: sizes for name, sizes in real["tables"].items() if sizes["model"]}
        assert held == real_tables
        chosen = {name: (sharding.sharding_type, sharding.compute_kernel) for name, sharding in real["plan"].items()}
        assert {p.table: (p.sharding_type, p.kernel) for p in planned.placements} == chosen


@pytest.mark.parametrize("tables", ["rowwise_adagrad", "adagrad", "sgd"])
@pytest.mark.parametrize("dense", ["adam", "sgd"])
def test_the_memory_of_each_optimizer(run_ranks: Any, tables: str, dense: str) -> None:
    """Catches the state of an optimizer that is counted for another one."""
    config = plan_config("row_wise", optimizer={"tables": _rates(tables), "dense": _rates(dense)})
    planned = plan(config, 2)
    for rank, real in zip(planned.ranks, really(run_ranks, config, 2), strict=True):
        assert rank.state == pytest.approx(real, rel=0.1)


def _rates(kind: str) -> dict[str, Any]:
    return {"kind": kind, "learning_rate": 0.1}


def test_unpooled_tables(run_ranks: Any) -> None:
    """Catches tables of another collection, and a user tower, that a plan leaves out."""
    config = make_dupn_config()
    planned = plan(config, 2)
    for rank, real in zip(planned.ranks, run_ranks(Allocate(config), 2), strict=True):
        assert rank.state == pytest.approx(real["bytes"], rel=0.1)
        assert {name for name, memory in rank.tables.items() if memory.weights} == set(real["tables"])


def test_another_sharding_would_be_seen(run_ranks: Any) -> None:
    """Holds the negative control: 10 % are narrow enough to tell the shardings apart."""
    row_wise = plan(plan_config("row_wise"), 2)
    for sharding in ("table_wise", "data_parallel"):
        real = really(run_ranks, plan_config(sharding), 2)
        assert max(real) > 1.25 * max(rank.state for rank in row_wise.ranks)


def test_bytes_per_row_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches constant tensors that count as rows', and widths or a precision that change nothing."""
    config = plan_config()
    few = measure_rows(config)
    monkeypatch.setattr(row_memory, "_MORE", 64)
    assert measure_rows(config) == few
    wide = config.model.model_copy(update={"towers": [64]})
    assert measure_rows(config.model_copy(update={"model": wide})).activations > few.activations
    half = config.workers.model_copy(update={"precision": "bfloat16"})
    assert measure_rows(config.model_copy(update={"workers": half})).activations != few.activations
    # Ids of 1 + 1 + 6 rows, their lengths, a number, and per task a label and a weight, in float32 and int32.
    assert few.encoded >= 4 * (1 + 1 + 6 + 1 + 3)


def test_ids_per_row() -> None:
    """Catches pooling factors of another feature, or statistics that are left aside."""
    schema = plan_config().log_schema
    assert expected_ids(schema, None) == {"user": [1.0], "video": [1.0, 6.0]}
    missing = {"user_id": 0.25, "video_id": 0.0}
    found = Statistics(days=[], rows=1, numbers={}, distinct_ids={}, missing_ids=missing, schema_fingerprint="")
    assert expected_ids(schema, found) == {"user": [0.75], "video": [1.0, 6.0]}
    (sequence,) = (feature.name for feature in schema.features if feature.kind == "sequence")
    measured = found.model_copy(update={"mean_lengths": {sequence: 2.5}})
    assert expected_ids(schema, measured) == {"user": [0.75], "video": [1.0, 2.5]}
    without = found.model_copy(update={"mean_lengths": {sequence: 0.0}, "missing_ids": {"user_id": 1.0}})
    assert expected_ids(schema, without) == {"user": [0.01], "video": [1.0, 0.01]}


# --- What fits ---


@pytest.mark.parametrize("sharding", ["row_wise", "table_wise", "data_parallel"])
def test_what_does_not_fit(run_ranks: Any, sharding: str) -> None:
    """Catches a plan that fits memory below the bytes of the real run, or refuses memory in which the run fits."""
    config = plan_config(sharding, checkpoint={"background": False})
    real = max(really(run_ranks, config, 2))
    run = DryRun(config)
    below = run.plan(Workers(2, 8, "cpu", real - 1))
    assert not below.fits
    assert below.missing_bytes == used_bytes(below.workers, below.fullest) - (real - 1)
    enough = used_bytes(below.workers, below.fullest)
    assert real <= enough
    assert run.plan(Workers(2, 8, "cpu", enough)).fits
    assert not run.plan(Workers(2, 8, "cpu", enough - 1)).fits


def test_the_copy_of_a_save() -> None:
    """Catches a copy that is forgotten on the CPU, or that counts in the memory of a GPU."""
    with_copy, without = (plan_config(checkpoint={"background": background}) for background in (True, False))
    for config, expected in ((with_copy, 1), (without, 0)):
        rank = plan(config, 2).fullest
        assert rank.saved_copy == expected * rank.state
        assert used_bytes(Workers(2, 8, "cpu", 1), rank) == rank.on_device + rank.saved_copy
        assert used_bytes(Workers(2, 8, "cuda", 1), rank) == rank.on_device
    copy = plan(with_copy, 2, device="cuda").fullest.saved_copy
    for host_bytes, lacks in ((copy, ""), (copy - 1, "host"), (None, "")):
        found = DryRun(with_copy).plan(Workers(2, 8, "cuda", PLENTY, host_bytes))
        assert (found.fits, found.lacks) == (not lacks, lacks)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("share", [0.3, 0.55, 0.9, 1.2])
def test_the_smallest_number_of_workers(device: str, share: float) -> None:
    """Catches a search that passes over a smaller number, or ends at one that does not fit."""
    config = plan_config("row_wise", ingest={"batch_size": 4})
    run = DryRun(config)
    memory = round(share * run.plan(Workers(1, 8, device, PLENTY)).fullest.state * (2 if device == "cpu" else 1.25))
    workers = Workers(1, 8, device, memory)
    smallest = run.smallest(workers)
    assert smallest is not None
    fits = [run.plan(Workers(num, 8, device, memory)).fits for num in range(1, smallest + 1)]
    assert fits == [False] * (smallest - 1) + [True]
    assert share < 1.2 or smallest == 1
    assert share > 0.3 or smallest > 3


def test_there_is_no_smallest_number() -> None:
    """Catches a search without an end, where more workers do not help."""
    weights = USER_ROWS * DIM * 4
    for sharding in ("table_wise", "data_parallel"):
        assert DryRun(plan_config(sharding)).smallest(Workers(1, 8, "cuda", weights - 1)) is None


def test_whole_hosts() -> None:
    """Catches a number of workers that leaves a host half empty, which TorchRec takes for one host."""
    run = DryRun(plan_config("row_wise", ingest={"batch_size": 4}))
    memory = round(run.plan(Workers(2, 2, "cpu", PLENTY)).fullest.state * 1.5)
    assert run.smallest(Workers(1, 2, "cpu", memory)) == 4
    with pytest.raises(ConfigError, match="3 workers do not fill hosts of 2"):
        run.plan(Workers(3, 2, "cpu", memory))
    with pytest.raises(ConfigError, match="3002 rows for 4000 workers"):
        run.plan(Workers(4000, 8, "cpu", memory))


# --- A GPU, which is not there ---


def test_a_start_tells_the_planner_of_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a start that plans for TorchRec's GPU of 32 GB, and so refuses a model that the dry run has placed."""
    config = plan_config()
    schema = config.log_schema
    assert device_load(schema, None, 4, torch.device("cpu")) is None
    monkeypatch.setattr(
        table_planner.torch.cuda, "get_device_properties", lambda _: type("", (), {"total_memory": 80 * 10**9})
    )
    load = device_load(schema, None, 4, torch.device("cuda", 0))
    assert load is not None
    assert (load.memory_bytes, load.batch_size, load.ids) == (80 * 10**9, 4, expected_ids(schema, None))
    devices = table_planner.table_planner(schema, config.sharding, 2, "cuda", 2, load)._topology.devices
    assert [device.storage.hbm for device in devices] == [80 * 10**9] * 2


def test_the_order_of_choices_is_fixed() -> None:
    """Catches a placement that depends on the seed of Python's hashes, as TorchRec's own order of choices does."""
    config = plan_config(None)
    enumerator: Any = table_planner.table_planner(config.log_schema, config.sharding, 2, "cuda", 2, None)._enumerator
    expected = ["row_wise", "table_row_wise", "table_wise"]
    for offered in (expected, expected[::-1], ["column_wise", *expected[1:], expected[0]]):
        assert enumerator._filter_sharding_types("user", offered) == expected


def test_a_gpu_keeps_a_reserve() -> None:
    """Catches a plan for CUDA that uses the memory which TorchRec's planner keeps free at a start."""
    run = DryRun(plan_config("row_wise", ingest={"batch_size": 4}))
    used = run.plan(Workers(2, 8, "cuda", PLENTY)).fullest.on_device
    full = run.plan(Workers(2, 8, "cuda", used))
    assert not full.fits
    assert full.reserve == 0.15
    assert run.plan(Workers(2, 8, "cuda", used + full.missing_bytes)).fits
    assert not run.plan(Workers(2, 8, "cuda", used + round(0.9 * full.missing_bytes))).fits


def test_estimated_times_add_up() -> None:
    """Catches parts of a step's time of another rank, and a bottleneck that is not the longest part."""
    found = plan(plan_config("table_wise"), 2, device="cuda")
    longest = max(found.milliseconds, key=lambda part: found.milliseconds[part])
    assert found.bottleneck.startswith(f"{longest} of table ")
    assert found.bottleneck.endswith(f" on rank {found.slowest}")
    assert np.isclose(sum(found.milliseconds.values()), max(p.milliseconds for p in found.placements))
