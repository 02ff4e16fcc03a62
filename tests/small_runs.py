"""Small logs, the configuration of runs over them, and the tensors of their checkpoints."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from features.synthetic.logs import SyntheticConfig, write_day
from pipeline.config.load import parse_config
from pipeline.config.project import Config
from pipeline.lineage.line import Line
from pipeline.lineage.records import Latest

DAYS = ["2026-01-01", "2026-01-02"]
ROWS_PER_DAY = 3000


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training days and a test day; row groups of 300 rows, cut to units of at most 200."""
    folder = tmp_path_factory.mktemp("logs")
    world = SyntheticConfig(
        seed=5,
        first_day=date(2026, 1, 1),
        rows_per_day=ROWS_PER_DAY,
        num_users=200,
        num_videos=200,
        num_authors=20,
        files_per_day=3,
        row_group_rows=300,
    )
    for day in [*DAYS, "2026-01-03"]:
        write_day(world, date.fromisoformat(day), folder)
    return folder


def make_config(logs: Path, root: Path, **sections: Any) -> Config:
    ids = [{"kind": "id", "name": name, "table": name.removesuffix("_id")} for name in ("user_id", "video_id")]
    return parse_config(
        {
            "name": "runs",
            "root": str(root),
            "seed": 11,
            "logs": {"path": str(logs)},
            "schema": {
                "tables": [
                    {"name": "user", "num_rows": 500, "dim": 8},
                    {"name": "video", "num_rows": 500, "dim": 8},
                    {"name": "context", "num_rows": 64, "dim": 8},
                ],
                "features": [
                    *ids,
                    *({"kind": "id", "name": name, "table": "context"} for name in ("scene", "slot", "device")),
                    {"kind": "sequence", "name": "history_video_id", "table": "video", "max_length": 10},
                    {"kind": "dense", "name": "duration_ms", "log1p": True, "allow_outcome": "known before"},
                ],
                "tasks": [
                    {"name": "ctr", "label": "click", "truth": "true_ctr"},
                    {
                        "name": "vcr",
                        "kind": "regression",
                        "label": "clip(play_ms / duration_ms, 0, 1)",
                        "space": "played == 1",
                        "truth": "true_vcr",
                    },
                ],
            },
            "model": {
                "network": {"kind": "cgc", "expert_layers": [16], "num_experts_per_task": 1, "num_shared_experts": 1},
                "towers": [8],
                "dropout": 0.1,
            },
            "optimizer": {"tables": {"learning_rate": 0.1}, "dense": {"learning_rate": 0.01}},
            "ingest": {"batch_size": 64, "unit": {"max_rows": 200}, "shuffle": {"interleave": 2}},
            "workers": {"num": 2, "timeout_s": 60, "max_failures": 0},
            "ray": {"num_cpus": 5},
            "evaluation": {"popularity": "video_id"},
        }
        | sections,
        "test",
    )


def weights(config: Config, checkpoint: str, folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, by name."""
    path = folder / "whole.pt"
    dcp_to_torch_save(Line.of(config.root, config.line).storage.path(checkpoint), path)
    found: dict[str, torch.Tensor] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(f"{prefix}/{name}", inner)
        elif isinstance(value, torch.Tensor):
            found[prefix] = value

    walk("", torch.load(path, weights_only=False))
    return found


def without_statistics(config: Config) -> Config:
    schema = config.log_schema.model_dump()
    schema["features"] = [feature for feature in schema["features"] if feature["kind"] != "dense"]
    return config.model_copy(update={"log_schema": type(config.log_schema).model_validate(schema)})


def unpublish(line: Line) -> None:
    """As if the run had been cut off before it published."""
    state = line.state()
    line.storage.write("LATEST", Latest(fence=state.fence, holder=state.holder).to_bytes())
