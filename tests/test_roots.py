"""Roots of every spelling: one place resolves them, so that our files and Ray's are where a person looks for them."""

import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
import ray
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

from features.encoding import Encoder
from features.errors import ConfigError
from pipeline.cluster.progress import ProgressBoard
from pipeline.cluster.session import run_workers
from pipeline.cluster.worker_group import ray_run_name, ray_storage
from pipeline.config.ingest import IngestConfig
from pipeline.config.load import parse_config
from pipeline.config.project import Config
from pipeline.config.urls import resolve_url
from pipeline.ingest.parts import whole_days
from pipeline.ingest.plan import RunPlan, StreamStart
from pipeline.ingest.units import list_days
from pipeline.storage.files import Storage

NAMES = ["plain", "with a space", "实验", "a#b", "a%20b", "a+b@c=d,e;f&g!h'(i)", "~", "a:b"]

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import this file


def config_of(root: str, name: str = "mine") -> Config:
    schema = {
        "tables": [{"name": "user", "num_rows": 100, "dim": 4}],
        "features": [{"kind": "id", "name": "user_id", "table": "user"}],
        "tasks": [{"name": "ctr", "label": "click"}],
    }
    optimizer = {"tables": {"learning_rate": 0.1}, "dense": {"learning_rate": 0.1}}
    model = {"network": {"kind": "hard_sharing", "layers": [4]}}
    data = {"name": name, "root": root, "logs": {"path": "logs"}, "schema": schema, "model": model}
    return parse_config(data | {"optimizer": optimizer, "workers": {"num": 1, "max_failures": 0}}, "my.yaml")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", "'' is no place: expected a local directory or s3://bucket/prefix"),
        ("  ", "'  ' is no place"),
        ("$HOME/x", r"'\$HOME/x' has a \$, and no variable is replaced here: write the path itself"),
        ("s3://bucket/${USER}", r"an s3:// url has a \$"),
        ("~nobody-of-this-name/x", "'~nobody-of-this-name/x': this machine has no user 'nobody-of-this-name'"),
        ("s3://bucket/a\nb", "an s3:// url has a character that cannot be shown"),
        ("s3://bucket/a::b", "an s3:// url has '::'"),
    ],
)
def test_no_place(url: str, expected: str) -> None:
    """Catches a folder named `$HOME`, and an empty root that is the folder of the command."""
    with pytest.raises(ConfigError, match=expected):
        resolve_url(url)
    with pytest.raises(ConfigError, match=expected):
        Storage(url)
    with pytest.raises(ConfigError, match=rf"my.yaml: root: {expected}"):
        config_of(url)


def test_a_local_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a folder that is literally called `~`, for Ray's files or ours, and a path that follows the worker."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    for root, expected in (
        ("~/x", home / "x"),
        ("~", home),
        ("x/../y", here / "y"),
        ("a b#c%20/实", here / "a b#c%20/实"),
    ):
        storage = Storage(root)
        storage.write("lines/LATEST", b"1")
        assert (expected / "lines/LATEST").read_bytes() == b"1"
        assert storage.url == str(expected)
        filesystem, path = pyarrow.fs.FileSystem.from_uri(ray_storage(config_of(root)))
        assert path == str(expected / "ray")
        filesystem.create_dir(path)
    assert sorted(path.name for path in here.iterdir()) == ["a b#c%20", "y"]


@pytest.mark.parametrize("name", NAMES)
def test_a_root_on_s3(s3_root: str, name: str, tmp_path: Path) -> None:
    """Catches a url that Ray, torch or s3fs reads as another prefix: %20 as a space, # as the end of the path."""
    root = f"{s3_root}/{uuid.uuid4().hex}/{name}"
    storage = Storage(root)
    assert storage.url == root
    assert storage.create("lines/LATEST", b"1")
    assert not storage.create("lines/LATEST", b"2")
    filesystem, path = pyarrow.fs.FileSystem.from_uri(ray_storage(config_of(root)))  # what Ray Train does
    assert path == storage.path("ray")
    with filesystem.open_output_stream(f"{path}/run/validation") as file:
        file.write(b"3")
    weights = {"weight": torch.arange(5.0)}
    writer = FsspecWriter(storage.under("checkpoint").url, sync_files=False)
    writer.fs.fs = storage.filesystem
    dcp.save(weights, storage_writer=writer, no_dist=True)
    assert storage.names() == ["checkpoint", "lines", "ray"]
    assert storage.under("ray").names("run") == ["validation"]
    assert storage.sibling(f"{name}x").names() == []
    loaded = {"weight": torch.zeros(5)}
    reader = FsspecReader(storage.under("checkpoint").url)
    reader.fs.fs = storage.filesystem
    dcp.load(loaded, storage_reader=reader, no_dist=True)
    assert torch.equal(loaded["weight"], weights["weight"])
    assert [name.rpartition("/")[2] for name in files(storage)] == ["validation"]
    storage.remove("ray/run")
    assert files(storage) == []
    assert Storage(f"{root.rpartition('/')[0]}").names() == [name]


@pytest.mark.parametrize("name", ["实验", "x" * 250, "a b", "", "a/b", "..", "ctr", "-", "Ein Versuch: größer"])
def test_the_name_of_a_run(name: str) -> None:
    """Catches a name that Ray refuses in its metrics or as a folder, and two runs of one name."""
    first, second = ray_run_name(name), ray_run_name(name)
    assert first != second
    for found in (first, second):
        assert found.isascii()
        assert len(found) <= 63
        assert found.replace("-", "").replace("_", "").isalnum()
    assert ray_run_name("demo").startswith("demo-")


def files(storage: Storage) -> list[str]:
    """List Ray's files; the server keeps empty folders, which are no files."""
    found = storage.filesystem.find(storage.path("ray"), detail=True)
    return [name for name, entry in found.items() if entry["size"]]


def _work(job: Any, lane: Any) -> dict[str, Any]:
    return {"rank": ray.train.get_context().get_world_rank(), "name": ray.train.get_context().get_experiment_name()}


@pytest.mark.ray
def test_a_run_on_ray(
    ray_cluster: None, s3_root: str, write_log: Callable[..., Storage], tiny_encoder: Encoder
) -> None:
    """Catches a training that Ray refuses, exit code 1, for the name of its project or the spelling of its root."""
    root = f"{s3_root}/{uuid.uuid4().hex}/实 验#1%20"
    logs = write_log([[[10]]])
    plan = RunPlan(
        logs, whole_days(list_days(logs, ["2026-03-01"], 10)), 1, tiny_encoder, IngestConfig(), 0, (StreamStart,)
    )
    config = config_of(root, "实验" * 125)
    result = run_workers(config, plan, _work, None, ProgressBoard.remote())
    assert (result["rank"], result["asked_to_stop"]) == (0, False)
    assert result["name"].isascii()
    assert files(Storage(root)) == []
