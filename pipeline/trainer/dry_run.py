"""Dry run of a training: TorchRec's planner on meta tables, for workers that need not exist.

The design has plans in room `pipeline/cluster/`. This one stands here, since it asks the planner exactly as a training
does (`pipeline.trainer.table_planner`), and the cluster's room may not import the trainer's. Neither Ray nor a GPU is
used.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.constants import DDR_CAP
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator
from torchrec.distributed.planner.types import PerfModel, PlannerError, ShardingOption

from features.errors import ConfigError
from features.statistics import Statistics
from models.assembly import build_ranker
from pipeline.config.project import Config
from pipeline.config.sharding import check_sharding
from pipeline.trainer.rank_memory import RankMemory, rank_memories
from pipeline.trainer.row_memory import measure_rows
from pipeline.trainer.table_planner import TableLoad, expected_ids, fuse_optimizers, table_planner, table_sharders

_NO_LIMIT = 2**60  # bytes
_MOST_WORKERS = 512
_PARTS = {
    "forward lookup": "fwd_compute",
    "forward communication": "fwd_comms",
    "backward lookup": "bwd_compute",
    "backward communication": "bwd_comms",
}


@dataclass(frozen=True, slots=True)
class Workers:
    """Workers that a dry run plans for.

    Args:
        num: Number of workers.
        per_host: Number of workers on a host, if there are that many.
        device: `cpu` or `cuda`.
        memory_bytes: Memory per worker: of its GPU, or its share of the host's on `cpu`.
        host_bytes: Memory of the host per worker with a GPU, for the copy of a save and for tables with a cache on the
            GPU; None: not checked.
    """

    num: int
    per_host: int
    device: str
    memory_bytes: int
    host_bytes: int | None = None

    @property
    def on_a_host(self) -> int:
        """Number of workers on each host."""
        return min(self.num, self.per_host)

    def check(self, config: Config) -> None:
        """Check that the configuration can be trained by so many workers.

        Raises:
            ConfigError: It cannot, or the workers do not fill their hosts.
        """
        if self.num % self.on_a_host:
            raise ConfigError(
                f"{self.num} workers do not fill hosts of {self.per_host}: use a multiple, or another "
                "--workers-per-host"
            )
        check_sharding(config.sharding, config.optimizer.tables, config.log_schema, self.num)


@dataclass(frozen=True, slots=True)
class Placement:
    """Placement of one table.

    Args:
        table: Name of the table.
        sharding_type: TorchRec's name of the sharding.
        kernel: TorchRec's name of the kernel.
        ranks: Ranks that hold a piece.
        milliseconds: Estimated time of a step for the table, on its slowest rank.
    """

    table: str
    sharding_type: str
    kernel: str
    ranks: tuple[int, ...]
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Result for one number of workers.

    Args:
        workers: The workers.
        fits: True if the planner finds a placement within the memory, and all that is counted fits too.
        placements: Placements of all tables; if nothing fits, those of least memory that the planner tried.
        ranks: Memory of each rank under these.
        missing_bytes: Bytes that the fullest rank lacks; 0 if it fits.
        reserve: Share of a GPU's memory that the planner keeps free.
        lacks: Memory that is too small: `device`, `host`, or on `cpu` the `planner`'s, which is 128 GiB per worker
            whatever the device has; empty if it fits.
        milliseconds: Estimate of the time of a step in the tables, on the slowest rank, by part.
        slowest: Number of the slowest rank.
        bottleneck: The part of its time that is the longest, and the table that has most of it.
    """

    workers: Workers
    fits: bool
    placements: tuple[Placement, ...]
    ranks: tuple[RankMemory, ...]
    missing_bytes: int
    reserve: float
    lacks: str
    milliseconds: dict[str, float]
    slowest: int
    bottleneck: str

    @property
    def fullest(self) -> RankMemory:
        """The rank with the most bytes on its device, with the copy of a save if that is in the same memory."""
        return max(self.ranks, key=lambda rank: used_bytes(self.workers, rank))


def used_bytes(workers: Workers, rank: RankMemory) -> int:
    """Return the bytes of a rank in the memory of its device; on `cpu` the copy of a save is in the same memory."""
    return rank.on_device + (rank.saved_copy if workers.device == "cpu" else 0)


def host_bytes(rank: RankMemory) -> int:
    """Return the bytes of a rank with a GPU in the memory of its host: the copy of a save, and tables with a cache."""
    return rank.saved_copy + rank.tables_in_host


class _LeastMemory(PerfModel):
    """Rating of a placement by the memory of its fullest rank.

    Args:
        num_ranks: Number of workers.
    """

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks

    def rate(self, plan: list[ShardingOption]) -> float:
        """Return the bytes of the fullest rank."""
        return max(_planned_bytes(plan, self._num_ranks))


def _planned_bytes(options: list[ShardingOption], num_ranks: int) -> list[int]:
    """Return the bytes of each rank's tables on its device, as the planner counts them: on the CPU all are `ddr`."""
    found = [0] * num_ranks
    for shard in (shard for option in options for shard in option.shards):
        assert shard.rank is not None
        assert shard.storage is not None
        found[shard.rank] += shard.storage.hbm or shard.storage.ddr
    return found


class DryRun:
    """Plans of one configuration for any workers.

    Args:
        config: The project's configuration.
        statistics: Statistics of the line; None: every row has an id in every feature.
    """

    def __init__(self, config: Config, statistics: Statistics | None = None) -> None:
        self.config = config
        self.row = measure_rows(config)
        self._ids = expected_ids(config.log_schema, statistics)
        declared = config.model
        network, towers = declared.network, declared.towers
        with torch.device("meta"):
            self._model = build_ranker(
                config.log_schema, network, towers, 0.0, None, config.joint_loss, around=declared
            )
        fuse_optimizers(self._model, config.sharding, config.optimizer.tables)

    def plan(self, workers: Workers) -> Plan:
        """Plan for a number of workers.

        Raises:
            ConfigError: The configuration cannot be trained by so many workers.
        """
        workers.check(self.config)
        options, planner = self._place(workers, workers.memory_bytes)
        short = 0
        if options is None:
            options, planner = self._place(workers, _NO_LIMIT, _LeastMemory(workers.num))
            if options is None:
                raise ConfigError(f"TorchRec's planner finds no placement of the tables on {workers.num} workers")
            short = self._short_of(workers, options, planner)
        self._estimate(planner, options)
        ranks = self._memory(workers, options)
        reserve: Any = planner._storage_reservation
        return _result(workers, options, ranks, short, reserve._percentage)

    def smallest(self, workers: Workers) -> int | None:
        """Return the smallest number of workers that fits, in whole hosts.

        Numbers grow until one fits. The last that did not is then approached, so the number before the result does
        not fit.

        Args:
            workers: Their device, memory and hosts; the number is ignored.

        Returns:
            The number; None if no number up to 512, or up to the rows of the smallest table, fits.
        """
        numbers = list(self._numbers(workers))
        place = next((place for place, num in enumerate(numbers) if self._weights_fit(workers, num)), None)
        if place is None:
            return None
        below, step, last = place - 1, 1, len(numbers) - 1
        while not self._fits(workers, numbers[place]):
            if place == last:
                return None
            below, place, step = place, min(place + step, last), 2 * step
        while place - below > 1:
            middle = (place + below) // 2
            below, place = (below, middle) if self._fits(workers, numbers[middle]) else (middle, place)
        return numbers[place]

    def _numbers(self, workers: Workers) -> Iterator[int]:
        """Yield the numbers of workers that fill their hosts and that every table has rows for."""
        most = min(_MOST_WORKERS, *(table.num_rows for table in self.config.log_schema.tables))
        yield from range(1, min(workers.per_host, most) + 1)
        yield from range(2 * workers.per_host, most + 1, workers.per_host)

    def _weights_fit(self, workers: Workers, num: int) -> bool:
        """Return False if the weights alone are more than the memory: no plan is needed then."""
        fixed = self.config.sharding.tables
        weights = {table.name: table.num_rows * table.dim * 4 for table in self.config.log_schema.tables}
        if workers.device == "cuda":
            weights |= {name: weights[name] * share for name, share in self.config.sharding.uvm_caching.items()}
        whole = [weights[name] for name, chosen in fixed.items() if chosen in ("table_wise", "data_parallel")]
        replicated = sum(weights[name] for name, chosen in fixed.items() if chosen == "data_parallel")
        spread = (sum(weights.values()) - replicated) / num
        return max(replicated + spread, *whole, 0) <= workers.memory_bytes

    def _fits(self, workers: Workers, num: int) -> bool:
        return self.plan(replace(workers, num=num)).fits

    def _place(
        self, workers: Workers, memory: int, performance: PerfModel | None = None
    ) -> tuple[list[ShardingOption] | None, EmbeddingShardingPlanner]:
        """Return the planner's placement, None if it finds none; on the CPU with the defaults of a training."""
        config = self.config
        # The memory of the host is checked afterwards, with the copy of a save, of which the planner knows nothing.
        load = TableLoad(config.ingest.batch_size, self._ids, memory, _NO_LIMIT) if workers.device == "cuda" else None
        planner = table_planner(
            config.log_schema, config.sharding, workers.num, workers.device, workers.on_a_host, load, performance
        )
        if performance is not None:
            for device in planner._topology.devices:
                device.storage.ddr = _NO_LIMIT
        try:
            planner.plan(self._model, table_sharders())
        except PlannerError:
            return None, planner
        return planner._best_plan, planner

    def _short_of(self, workers: Workers, options: list[ShardingOption], planner: EmbeddingShardingPlanner) -> int:
        """Return the bytes that the fullest rank lacks by the planner's own count, its reserve included."""
        reserve: Any = planner._storage_reservation
        fixed = reserve._dense_storage.hbm + reserve._kjt_storage.hbm + reserve._dense_storage.ddr
        needed = max(_planned_bytes(options, workers.num)) + fixed
        if workers.device == "cpu":
            return max(needed - DDR_CAP, 1)
        return max(math.ceil(needed / (1 - reserve._percentage)) + 1 - workers.memory_bytes, 1)

    def _estimate(self, planner: EmbeddingShardingPlanner, options: list[ShardingOption]) -> None:
        """Estimate the times again, with the real batch: on the CPU a placement is chosen by TorchRec's defaults."""
        for option in options:
            option.batch_size = self.config.ingest.batch_size
            option.input_lengths = list(self._ids[option.name])
        estimator = EmbeddingPerfEstimator(planner._topology, planner._constraints)
        estimator.estimate(options, planner._enumerator._sharder_data_map)  # pyright: ignore[reportAttributeAccessIssue]

    def _memory(self, workers: Workers, options: list[ShardingOption]) -> list[RankMemory]:
        row, num, per_host = self.row, workers.num, workers.on_a_host
        return rank_memories(self.config, self._model, options, self._ids, row, num, per_host)


def _result(
    workers: Workers, options: list[ShardingOption], ranks: list[RankMemory], short: int, reserve: float
) -> Plan:
    over = max(used_bytes(workers, rank) for rank in ranks) - workers.memory_bytes
    missing = max(short, over, 0)
    lacks = "planner" if workers.device == "cpu" and short > over else "device"
    if not missing and workers.host_bytes is not None and workers.device == "cuda":
        missing, lacks = max(max(host_bytes(rank) for rank in ranks) - workers.host_bytes, 0), "host"
    times = _times(options, workers.num)
    slowest = max(range(workers.num), key=lambda rank: sum(sum(parts.values()) for parts in times[rank].values()))
    parts = {part: sum(table[part] for table in times[slowest].values()) for part in _PARTS}
    longest = max(parts, key=lambda part: parts[part])
    table = max(times[slowest], key=lambda name: times[slowest][name][longest])
    return Plan(
        workers=workers,
        fits=not missing,
        placements=tuple(_placement(option, times) for option in options),
        ranks=tuple(ranks),
        missing_bytes=missing,
        reserve=reserve,
        lacks=lacks if missing else "",
        milliseconds=parts,
        slowest=slowest,
        bottleneck=f"{longest} of table {table} on rank {slowest}",
    )


def _placement(option: ShardingOption, times: list[dict[str, dict[str, float]]]) -> Placement:
    ranks = sorted({shard.rank for shard in option.shards if shard.rank is not None})
    slowest = max(sum(times[rank][option.name].values()) for rank in ranks)
    return Placement(option.name, option.sharding_type, option.compute_kernel, tuple(ranks), slowest)


def _times(options: list[ShardingOption], num_ranks: int) -> list[dict[str, dict[str, float]]]:
    """Return the planner's times by rank, table and part, in milliseconds."""
    found: list[dict[str, dict[str, float]]] = [{} for _ in range(num_ranks)]
    for option in options:
        for shard in option.shards:
            assert shard.rank is not None
            table = found[shard.rank].setdefault(option.name, dict.fromkeys(_PARTS, 0.0))
            for part, name in _PARTS.items():
                table[part] += getattr(shard.perf, name)
    return found
