"""Files in YAML: a text that means two things, or a key that is there twice, is refused; a number is a number."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from features.errors import ConfigError
from jobs import make_logs
from pipeline.config.load import load_config
from pipeline.config.project import Config
from pipeline.config.yaml_text import read_yaml, to_yaml
from pipeline.studies.experiment import load_experiment

PROJECT = """\
name: mine
root: runs/mine
seed: 3
logs: {path: runs/mine/logs}
schema:
  tables: [{name: user, num_rows: 10000, dim: 16}]
  features: [{kind: id, name: user_id, table: user}]
  tasks: [{name: ctr, label: click}]
model:
  network: {kind: hard_sharing, layers: [8]}
optimizer:
  tables: {learning_rate: 0.05}
  dense: {learning_rate: 0.002}
workers: {deterministic: true}
"""


def load(folder: Path, before: str, after: str, *overrides: str) -> Config:
    """Load the project with a part of its text replaced."""
    assert before in PROJECT
    path = folder / "my.yaml"
    path.write_text(PROJECT.replace(before, after))
    return load_config(path, overrides)


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("num_rows: 10000", "num_rows: 010000", ["line 6", "schema.tables.0.num_rows: 010000 is", "4096", "10000"]),
        ("num_rows: 10000", "num_rows: 0899", ["line 6", "schema.tables.0.num_rows: 0899", "899"]),
        ("num_rows: 10000", "num_rows: -0_10", ["line 6", "schema.tables.0.num_rows: -0_10"]),
        ("seed: 3", "seed: 12:30:45", ["line 3", "seed: 12:30:45 is", "45045"]),
        ("learning_rate: 0.05", "learning_rate: 1:30.5", ["line 12", "optimizer.tables.learning_rate: 1:30.5"]),
        ("layers: [8]", "layers: [8, 010]", ["line 10", "model.network.layers.1: 010"]),
    ],
)
def test_a_number_that_means_two_things(tmp_path: Path, before: str, after: str, named: list[str]) -> None:
    """Catches YAML 1.1's octal and base-60 numbers: 010000 is read as 4096, 12:30:45 as 45045."""
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, before, after)
    for text in ["my.yaml", *named]:
        assert text in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("seed: 3", "seed: 3\nseed: 4", ["line 4", "seed", "line 3"]),
        ("dim: 16", "dim: 16, dim: 8", ["line 6", "schema.tables.0.dim"]),
        ("workers: {", 'workers: {"num": 1, num: 2, ', ["line 14", "workers.num"]),
    ],
)
def test_a_key_that_is_there_twice(tmp_path: Path, before: str, after: str, named: list[str]) -> None:
    """Catches a file of which the last of two values counts, and nobody is told."""
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, before, after)
    for text in ["my.yaml", *named, "twice"]:
        assert text in str(refused.value)


def test_a_merged_key_is_replaced() -> None:
    """Catches a check that takes the replacement of a merged key for a second key."""
    text = "- &user {name: user, dim: 16}\n- {<<: *user, name: video}\n- *user\n"
    user = {"name": "user", "dim": 16}
    assert read_yaml(text, "it") == [user, {"name": "video", "dim": 16}, user]


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-3", 1e-3), ("1E-3", 1e-3), ("1e1", 10.0), ("5e-1", 0.5), ("1.e-3", 1e-3), (".5", 0.5), ("1.5e+2", 150.0)],
)
def test_a_power_of_ten_is_a_number(tmp_path: Path, text: str, number: float) -> None:
    """Catches `1e-3` read as text, since YAML 1.1 wants a point and a sign in it; in a file and in an override."""
    config = load(tmp_path, "learning_rate: 0.05", f"learning_rate: {text}", f"optimizer.dense.learning_rate={text}")
    assert (config.optimizer.tables.learning_rate, config.optimizer.dense.learning_rate) == (number, number)


@pytest.mark.parametrize("text", ["yes", "no", "on", "Off"])
def test_yes_and_no_are_text(tmp_path: Path, text: str) -> None:
    """Catches a name `no` that becomes False, and a `yes` that one YAML reads as True and the next one as text."""
    assert load(tmp_path, "name: mine", f"name: {text}").name == text
    with pytest.raises(ConfigError, match=rf"workers.deterministic: .*true or false, got '{text}'"):
        load(tmp_path, "deterministic: true", f"deterministic: {text}")


def test_numbers_as_before(tmp_path: Path) -> None:
    """Catches a reader that refuses, or changes, what every YAML reads alike; a quoted text is what it says."""
    for text, number in [("0", 0), ("7", 7), ("+7", 7), ("0x10", 16), ("1_000", 1000)]:
        assert load(tmp_path, "seed: 3", f"seed: {text}").seed == number
    assert load(tmp_path, "name: mine", "name: '010000'").name == "010000"
    assert load(tmp_path, "name: mine", 'name: "12:30:45"').name == "12:30:45"
    assert load(tmp_path, "deterministic: true", "deterministic: False").workers.deterministic is False


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Catches a name such as 1e3 or 0899, written without quotes, that is read as a number or refused."""
    names = ["1e3", "0899", "010", "12:30:45", "yes", "0x1F", "1_000", ".5", "true", "null", "~", "实验", "a b", "1"]
    data = {"names": names, "numbers": [1e-05, 1e22, 0.5, 3, True, None]}
    assert read_yaml(to_yaml(data), "it") == data


def _override(folder: Path, setting: str) -> Any:
    return load(folder, "name: mine", "name: mine", setting)


def _world(folder: Path, setting: str) -> Any:
    (folder / "world.yaml").write_text("seed: 1\n" + setting.replace("=", ": ") + "\n")
    return make_logs.load_world(str(folder / "world.yaml"))


def _world_override(folder: Path, setting: str) -> Any:
    (folder / "world.yaml").write_text("seed: 1\n")
    return make_logs.load_world(str(folder / "world.yaml"), [setting])


def _experiment(folder: Path, setting: str) -> Any:
    (folder / "experiment.yaml").write_text("name: e\n" + setting.replace("=", ": ") + "\n")
    return load_experiment(str(folder / "experiment.yaml"))


@pytest.mark.parametrize("read", [_override, _world, _world_override, _experiment])
def test_every_reader_of_yaml(tmp_path: Path, read: Callable[[Path, str], Any]) -> None:
    """Catches a second reader of YAML beside the one that refuses; `seeds` and `seed` are keys of different files."""
    key = "seeds" if read is _experiment else "seed"
    key = "rows_per_day" if read in (_world, _world_override) else key
    with pytest.raises(ConfigError, match=rf"{key}.*010000 is .*4096"):
        read(tmp_path, f"{key}=010000")
    with pytest.raises(ConfigError, match="twice"):
        read(tmp_path, f"{key}={{a: 1, a: 2}}")


def test_a_world_is_a_folder_of_keys(tmp_path: Path) -> None:
    """Catches a traceback where a file holds a list, is a folder, or is not text."""
    for name, content in (("list.yaml", b"[1, 2]"), ("bytes.yaml", b"\xff\xfe\xfa"), ("half.yaml", b"a: {")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.yaml").mkdir()
    for read in (load_config, make_logs.load_world, load_experiment):
        for name in ("list.yaml", "bytes.yaml", "half.yaml", "folder.yaml", "none.yaml"):
            with pytest.raises(ConfigError, match=name) as refused:
                read(str(tmp_path / name))
            assert "\n" not in str(refused.value)
