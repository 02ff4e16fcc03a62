"""Defaults of the configuration by device, and shardings where hosts differ."""

from typing import Any

import pytest
import torch.distributed as dist
from train_steps import Run, make_config

from features.errors import ConfigError, DataError
from pipeline.config.load import parse_config
from pipeline.config.project import ON_CUDA, Config
from pipeline.config.sharding import ShardingConfig
from pipeline.trainer.sharding import config_for_hosts


def _config(**sections: Any) -> Config:
    given = make_config().model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return parse_config(given | sections, "test")


def test_defaults_of_a_gpu() -> None:
    """Catches a GPU that trains with the defaults of a CPU, and a CPU with those of a GPU."""
    on_cpu, on_gpu = _config(), _config(workers={"device": "cuda"})
    for section, values in ON_CUDA.items():
        for name, value in values.items():
            assert getattr(getattr(on_gpu, section), name) == value
            assert getattr(getattr(on_cpu, section), name) != value
    assert on_cpu.workers.deterministic


def test_what_is_given_counts() -> None:
    """Catches a default that overrides the file, and a config that is another one when it is read again."""
    given = _config(workers={"device": "cuda", "precision": "float32"}, ingest={"batch_size": 64, "lookahead": 1})
    assert (given.workers.precision, given.ingest.batch_size, given.ingest.lookahead) == ("float32", 64, 1)
    assert (given.workers.deterministic, given.checkpoint.writer_threads) == (False, 4)
    written = given.model_dump(mode="json", by_alias=True)
    assert parse_config(written, "test") == given


@pytest.mark.parametrize("section", ["ingest", "checkpoint"])
def test_a_section_that_is_none_is_refused_as_ever(section: str) -> None:
    """Catches a traceback, where a section of the file is empty or a list."""
    for bad in (None, [], 3):
        with pytest.raises(ConfigError, match=section):
            _config(workers={"device": "cuda"}, **{section: bad})


def test_hosts_that_differ_have_no_table_of_one_host() -> None:
    """Catches a sharding in which ranks do not agree on who has which rows, and one that is declared and changed."""
    declared = ShardingConfig()
    assert config_for_hosts(declared, [4, 4, 4, 4]) == declared
    assert config_for_hosts(declared, [2, 2, 1]).types == ["table_wise", "row_wise"]
    for bad in (ShardingConfig(types=["table_row_wise"]), ShardingConfig(tables={"user": "table_row_wise"})):
        assert config_for_hosts(bad, [2, 2]) == bad
        with pytest.raises(DataError, match=r"hosts have \[1, 2\]"):
            config_for_hosts(bad, [2, 2, 1])


def uneven() -> int:
    """Return the number of workers of a host: two ranks share the first, the third is alone."""
    return 2 if dist.get_rank() < 2 else 1


def test_ranks_learn_of_each_other_s_hosts(run_ranks: Any) -> None:
    """Catches a planner that takes its own host for all: the plan would have tables on one host."""
    patches = {"pipeline.trainer.sharding.get_local_size": uneven}
    config = make_config("row_wise")
    free = config.model_copy(update={"sharding": config.sharding.model_copy(update={"types": ["table_row_wise"]})})
    with pytest.raises(AssertionError, match="hosts have"):
        run_ranks(Run(free, steps=range(0), patches=patches), 3)
    plan = run_ranks(Run(config, steps=range(0), patches=patches), 3)[2]["plan"]
    assert {chosen.sharding_type for chosen in plan.values()} == {"row_wise"}
