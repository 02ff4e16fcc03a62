"""Rows per second from Parquet to a checkpoint, over those of torch-rechub and DeepCTR-Torch from arrays in memory."""

import contextlib
import json
import os
import statistics
import subprocess
import time
import venv
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.one_rank import day_batches
from benchmarks.workload import DAY, WORKERS, load, raw_config, write_config
from features.synthetic.logs import SyntheticConfig, make_part, write_day
from pipeline.cluster.session import ray_session
from pipeline.config.project import Config
from pipeline.evaluation.evaluate import evaluate
from pipeline.lineage.frozen_statistics import STATISTICS
from pipeline.lineage.line import Line
from pipeline.trainer.train_line import train

_PINS = {"torch_rechub": "torch-rechub==0.9.0", "deepctr_torch": "deepctr-torch==0.3.0"}
_NEEDS = ("pandas", "scikit-learn", "scipy", "tqdm")
_CASES = {"small": (20_000, 20_000), "large": (1_000_000, 200_000)}
_GOALS = {"small": 1.5, "large": 20, "auc_within": 0.002}
_ROWS, _QUICK_ROWS, _FEW = 2**17, 2**14, 2**10
_BATCH, _DIM, _HISTORY, _RATE = 1024, 16, 20, 0.001
_PLE = {"levels": 2, "own": 2, "shared": 2, "width": 128, "tower": 64}
_VALID = DAY + timedelta(1)


def run(quick: bool) -> dict[str, Any]:
    """Train a day by each, in turns, with the same PLE of two tasks, batches of 1,024 rows over all, and 2 cores.

    The peers get arrays that are decoded, hashed and padded already, and their torch is this project's. Their loading
    is left out, as is the fixed time of our training: it is the time of a training of 1,024 rows, on the same workers.

    Args:
        quick: Our side alone, on small tables, with an eighth of the rows.
    """
    turns = int(os.environ.get("BENCH_TURNS", "1" if quick else "5"))
    names = os.environ.get("BENCH_CASES", "small" if quick else "small large").split()
    with contextlib.ExitStack() as stack:
        python, note = (None, "not asked for by --quick") if quick else _peers_python(stack)
        rows = _QUICK_ROWS if quick else _ROWS
        cases = {name: _case(*_CASES[name], rows, turns, python) for name in names}
    return {
        "rows": rows,
        "batch": _BATCH,
        "workers": WORKERS,
        "turns": turns,
        "dim": _DIM,
        "ple": _PLE,
        "peers": note,
        "goals": _GOALS,
        "cases": cases,
    }


def _peers_python(stack: contextlib.ExitStack) -> tuple[Path | None, str]:
    """Install the peers in an environment of their own, which sees this one's packages.

    Returns:
        Its interpreter, or None; and the installed versions, or the reason why there are none.
    """
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="counterpoise-peers-")))
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    (own,) = (folder / "lib").glob("python*/site-packages")
    (own / "base.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    installed = [[*("--no-deps", *_PINS.values())], [*_NEEDS]]
    for words in installed:
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return None, f"left out: pip could not install {' '.join(words)}"
    return python, ", ".join(_PINS.values())


def _case(users: int, videos: int, rows: int, turns: int, python: Path | None) -> dict[str, Any]:
    with TemporaryDirectory(prefix="counterpoise-bench-") as folder:
        config = _project(folder, users, videos, rows)
        if python is not None:
            _write_arrays(Path(folder), users, videos)
        names = ["ours", *([] if python is None else _PINS)]
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for turn in range(turns):
            with ray_session(config):
                found["ours"].append(_ours(config, turn, rows))
            for name in names[1:]:
                found[name].append(_peer(python, name, folder))
    rates = {name: statistics.median(one["rows_per_s"] for one in ones) for name, ones in found.items()}
    aucs = {name: [round(auc, 4) for auc in ones[0]["auc"]] for name, ones in found.items()}
    result: dict[str, Any] = {
        "tables": {"user": users, "video": videos},
        "rows_per_s": {name: round(rate) for name, rate in rates.items()},
        "auc_of_ctr_and_vtr": aucs,
        "our_start_s": round(statistics.median(one["start_s"] for one in found["ours"]), 1),
    }
    if python is not None:
        best = max(rate for name, rate in rates.items() if name != "ours")
        result["ours_over_the_better_peer"] = round(rates["ours"] / best, 2)
    return result


def _project(folder: str, users: int, videos: int, rows: int) -> Config:
    """Make two days to train, one of few rows, and one to measure; return the config."""
    world = SyntheticConfig(
        seed=7,
        first_day=DAY - timedelta(4),
        rows_per_day=rows,
        num_users=users,
        num_videos=videos,
        num_authors=2_000,
        files_per_day=4,
        row_group_rows=2**13,
    )
    write_day(world, DAY, f"{folder}/logs")
    write_day(world.model_copy(update={"seed": 8}), _VALID, f"{folder}/logs")
    write_day(world.model_copy(update={"rows_per_day": _FEW}), DAY - timedelta(1), f"{folder}/logs")
    schema = raw_config(folder)["schema"]
    tables = [{"name": "user", "num_rows": users, "dim": _DIM}, {"name": "video", "num_rows": videos, "dim": _DIM}]
    features = [one | ({"pooling": "mean"} if one["kind"] == "sequence" else {}) for one in schema["features"]]
    level = {
        "expert_layers": [_PLE["width"]],
        "num_experts_per_task": _PLE["own"],
        "num_shared_experts": _PLE["shared"],
    }
    write_config(
        folder,
        make_part(world, DAY, 0),
        schema=schema | {"tables": tables, "features": features, "tasks": schema["tasks"][:2]},
        model={"network": {"kind": "ple", "levels": [level] * _PLE["levels"]}, "towers": [_PLE["tower"]]},
        optimizer={"tables": {"learning_rate": 0.05}, "dense": {"kind": "adam", "learning_rate": _RATE}},
        ingest={"batch_size": _BATCH // WORKERS},
    )
    return load(Path(folder))[0]


def _ours(config: Config, turn: int, rows: int) -> dict[str, Any]:
    """Train a day of few rows twice, and the day, on the same workers; measure the model of the first turn."""
    seconds, few = {}, DAY - timedelta(1)
    for name, day in (("start", few), ("few", few), ("all", DAY)):
        own = Line.of(config.root, f"{name}-{turn}")
        own.storage.write(STATISTICS, Line.of(config.root, config.line).storage.read(STATISTICS))
        began = time.perf_counter()
        train(config.model_copy(update={"line": own.name}), [day.isoformat()], 1)
        seconds[name] = time.perf_counter() - began
    measured = config.model_copy(update={"line": f"all-{turn}"})
    tasks = [] if turn else evaluate(measured, [_VALID.isoformat()], None, [])["tasks"]
    return {
        "rows_per_s": (rows - _FEW) / (seconds["all"] - seconds["few"]),
        "start_s": seconds["start"],
        "auc": [task["model"]["auc"] for task in tasks],
    }


def _write_arrays(folder: Path, users: int, videos: int) -> None:
    """Write the rows as the peers take them: padding is id 0, and a missing dense value 0."""
    for name, day in (("train", DAY), ("valid", _VALID)):
        batches = day_batches(*load(folder, day.isoformat()))
        real = [torch.arange(len(batch.labels)) < batch.cursor.num_rows for batch in batches]
        pairs = list(zip(batches, real, strict=True))
        ids = {
            key: np.concatenate([batch.sparse[key].values().numpy() + 1 for batch in batches])
            for key in ("user_id", "video_id")
        }
        watched = [(batch.sparse["watched"].to_padded_dense(_HISTORY, -1) + 1)[rows] for batch, rows in pairs]
        arrays: dict[str, Any] = ids | {
            "watched": torch.cat(watched).long().numpy(),
            "dense": torch.cat([batch.dense[rows].nan_to_num() for batch, rows in pairs]).numpy(),
            "labels": torch.cat([batch.labels[rows] for batch, rows in pairs]).numpy(),
        }
        np.savez(folder / f"{name}.npz", **arrays)
    sizes = _PLE | {"users": users, "videos": videos, "dim": _DIM, "batch": _BATCH, "rate": _RATE, "threads": WORKERS}
    (folder / "sizes.json").write_text(json.dumps(sizes))


def _peer(python: Path | None, name: str, folder: str) -> dict[str, Any]:
    """Train by a peer in its own process."""
    script = Path(__file__).with_name("peers.py")
    environment = os.environ | {"OMP_NUM_THREADS": str(WORKERS)}
    command = [str(python), str(script), name, folder]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
