"""Log, schema and project that the benchmarks share: 2 ids, one history of 20, 13 dense features, 5 tasks."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import yaml

from features.encoding import Encoder
from features.schema import Schema
from features.statistics import StatisticsAccumulator
from features.synthetic.logs import SyntheticConfig, make_part, write_day
from pipeline.config.load import parse_config
from pipeline.config.project import Config
from pipeline.ingest.units import DayLog, list_days
from pipeline.lineage.frozen_statistics import STATISTICS
from pipeline.storage.files import Storage
from pipeline.storage.sealed_json import seal

DAY = date(2026, 11, 5)  # the fifth day, when most users have the views of a full history behind them
WORKERS = 2

_LOGARITHMIC = ("user_age_days", "user_watch_ms_7d", "user_clicks_7d", "user_shares_30d", "user_follows")
_LOGARITHMIC += ("video_plays_7d", "video_comments_7d", "author_followers")
_DURATION = {"kind": "dense", "name": "duration_ms", "log1p": True, "allow_outcome": "known before the video is shown"}
_PLAIN = ("user_active_days_30d", "video_age_hours", "video_like_rate_7d", "video_completion_rate_7d")
_SCHEMA: dict[str, Any] = {
    "slot": "slot",
    "tables": [{"name": "user", "num_rows": 20_000, "dim": 16}, {"name": "video", "num_rows": 20_000, "dim": 16}],
    "features": [
        {"kind": "id", "name": "user_id", "table": "user"},
        {"kind": "id", "name": "video_id", "table": "video"},
        {"kind": "sequence", "name": "watched", "column": "history_video_id", "table": "video", "max_length": 20},
        _DURATION,
        *({"kind": "dense", "name": name, "log1p": True} for name in _LOGARITHMIC),
        *({"kind": "dense", "name": name} for name in _PLAIN),
    ],
    "tasks": [
        {"name": "ctr", "label": "click"},
        {"name": "vtr", "label": "played == 1 and coalesce(play_ms, 0) >= 7000"},
        {
            "name": "vcr",
            "kind": "regression",
            "link": "sigmoid",
            "label": "clip(play_ms / duration_ms, 0, 1)",
            "space": "played == 1",
        },
        {"name": "shr", "label": "share", "space": "played == 1"},
        {"name": "cmr", "label": "comment", "space": "played == 1"},
    ],
}
# The paper gives the widths of its levels, not the numbers of experts: as in head_gemm, two a task and two shared.
PAPER_HEAD: dict[str, Any] = {
    "network": {
        "kind": "ple",
        "levels": [
            {"expert_layers": [width], "num_experts_per_task": 2, "num_shared_experts": 2} for width in (256, 128)
        ],
    },
    "towers": [64],
}
ONE_LAYER_HEAD: dict[str, Any] = {
    "network": {"kind": "cgc", "expert_layers": [64], "num_experts_per_task": 0, "num_shared_experts": 1},
    "towers": [],
}


@contextmanager
def project(num_rows: int, row_group_rows: int, num_ids: int, **sections: dict[str, Any]) -> Iterator[Path]:
    """Make a temporary project with a day's log, its statistics, and `config.yaml`; remove it at the end.

    Args:
        num_rows: Rows of the day, in four files.
        row_group_rows: Rows of a row group.
        sections: Sections of the config, which replace those of `raw_config`.
    """
    with TemporaryDirectory(prefix="counterpoise-bench-") as folder:
        world = SyntheticConfig(
            seed=7,
            first_day=date(2026, 11, 1),
            rows_per_day=num_rows,
            num_users=num_ids,
            num_videos=num_ids,
            num_authors=num_ids // 10,
            files_per_day=4,
            row_group_rows=row_group_rows,
        )
        write_day(world, DAY, f"{folder}/logs")
        write_config(folder, make_part(world.model_copy(update={"rows_per_day": 65_536}), DAY, 0), **sections)
        yield Path(folder)


def write_config(folder: str, sample: pa.Table, **sections: dict[str, Any]) -> None:
    """Write a project's `config.yaml`, and the statistics of a sample of its rows."""
    raw = raw_config(folder) | sections
    schema = Schema.model_validate(raw["schema"])
    statistics = StatisticsAccumulator(schema)
    statistics.update({name: sample[name] for name in schema.columns()})
    content = statistics.finish([DAY.isoformat()]).model_dump(mode="json")
    Storage(f"{folder}/lines/main").write(STATISTICS, seal(content))
    Path(folder, "config.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))


def raw_config(folder: str) -> dict[str, Any]:
    """Return a config in the form of its file, with default sizes and the one-layer head."""
    return {
        "name": "bench",
        "root": folder,
        "logs": {"path": f"{folder}/logs"},
        "schema": _SCHEMA,
        "model": ONE_LAYER_HEAD,
        "optimizer": {
            "tables": {"kind": "rowwise_adagrad", "learning_rate": 0.1},
            "dense": {"kind": "adam", "learning_rate": 0.003},
        },
        "workers": {"num": WORKERS},
    }


def load(folder: Path, day: str = DAY.isoformat(), **sections: dict[str, Any]) -> tuple[Config, Encoder, DayLog]:
    """Return a project's config, its encoder, and a day.

    Args:
        folder: Folder of the project.
        day: ISO date of the day.
        sections: Sections of the config to replace.
    """
    from pipeline.lineage.frozen_statistics import load_statistics
    from pipeline.lineage.line import Line

    config = parse_config(yaml.safe_load((folder / "config.yaml").read_text()) | sections, "benchmark")
    encoder = Encoder(config.log_schema, load_statistics(config, Line.of(config.root, config.line)))
    return config, encoder, list_days(Storage(config.logs.path), [day], config.ingest.unit.max_rows)[0]
