"""The command that plans: its JSON line, exit codes, checks of the inputs, and all that it does not start or import."""

import argparse
import json
import math
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import yaml
from plan_runs import plan_config
from small_runs import ROWS_PER_DAY, logs, make_config  # noqa: F401 - a fixture

from features.errors import DataError
from features.statistics import Statistics
from jobs import plan
from jobs.command import outcome
from pipeline.config.load import parse_config
from pipeline.config.project import Config
from pipeline.ingest.units import DayLog, Unit, Units
from pipeline.lineage.frozen_statistics import STATISTICS
from pipeline.lineage.line import Line
from pipeline.storage.sealed_json import seal
from pipeline.trainer.plan_inputs import (
    check_newest_day,
    check_room_for_units,
    colliding_share,
    daily_cost,
    ids_of_tables,
    read_statistics,
    warn_of_inputs,
)
from pipeline.trainer.row_memory import RowMemory, encoded_row_bytes, measure_rows

ROOT = Path(__file__).parents[1]
CUDA = ["--device", "cuda", "--hbm-gb", "80", "--workers", "2"]


def call(folder: Path, config: Config, *options: str) -> tuple[dict[str, Any], int]:
    """Run the command in this process."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", by_alias=True)))
    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)
    return outcome(plan.run, parser.parse_args(["--config", str(file), *options]))


def project(folder: Path, logs: Path, **sections: Any) -> Config:  # noqa: F811
    return make_config(logs, folder / "root", **sections)


def test_what_fits(tmp_path: Path, logs: Path) -> None:  # noqa: F811
    """Catches a line without a scheduler's figures, a file that contradicts it, and a cost of other rows."""
    prices = ["--rows-per-s-per-worker", "100", "--price-per-worker-hour", "3"]
    line, code = call(tmp_path, project(tmp_path, logs), *CUDA, *prices)
    assert code == 0, line
    assert (line["fits"], line["workers"], line["smallest_workers"], line["missing_bytes"]) == (True, 2, 1, 0)
    assert line["bottleneck"].split(" of table ")[1].split()[0] in ("user", "video", "context")
    assert line["rows_per_s"] == 200
    hours = ROWS_PER_DAY / 200 / 3600  # of the newest day by its footers
    assert line["cost_per_day"] == pytest.approx(hours * 2 * 3)
    whole = json.loads(Path(line["figures"]).read_text())
    assert line["bytes_per_rank"] == max(rank["on_device"] for rank in whole["ranks"])
    assert {placement["table"] for placement in whole["placements"]} == {"user", "video", "context"}
    assert whole["log"] == "schema checked against 2026-01-03"
    assert "no statistics" in whole["ids"]


def test_what_does_not_fit(tmp_path: Path, logs: Path) -> None:  # noqa: F811
    """Catches a refusal without its figures, its rank, its table, or a remedy; and one that names a number in vain."""
    config = plan_config("row_wise", root=str(tmp_path / "root"), logs={"path": str(tmp_path)}, ray={"num_cpus": 9})
    config = config.model_copy(update={"ingest": config.ingest.model_copy(update={"batch_size": 4})})
    options = ["--device", "cuda", "--workers", "1"]
    line, code = call(tmp_path, config, *options, "--hbm-gb", "0.0008")
    assert (code, line["fits"]) == (3, False)
    assert f"rank 0 lacks {line['missing_bytes'] / 1e6:,.1f} MB" in line["error"]
    assert "largest table is user with 0.8 MB of weights, row_wise" in line["error"]
    smallest = line["smallest_workers"]
    assert smallest > 1
    assert f": use {smallest} workers, or " in line["error"]
    again, code = call(tmp_path, config, "--device", "cuda", "--workers", str(smallest), "--hbm-gb", "0.0008")
    assert (code, again["fits"]) == (0, True)


def test_remedies(tmp_path: Path) -> None:
    """Catches a remedy that does not help, such as a save without a copy where the copy is elsewhere."""
    sections: dict[str, Any] = {"root": str(tmp_path / "root"), "logs": {"path": str(tmp_path)}}
    table_wise = plan_config("table_wise", **sections)
    line, code = call(tmp_path, table_wise, "--ram-gb", "0.001", "--workers", "2")
    assert code == 3
    assert "set sharding.tables.user to row_wise, or set checkpoint.background to false" in line["error"]
    line, _ = call(tmp_path, table_wise, "--hbm-gb", "0.001", "--workers", "2", "--device", "cuda")
    assert "checkpoint.background" not in line["error"]
    line, _ = call(tmp_path, table_wise, *CUDA, "--ram-gb", "0.0001")
    assert "in the memory of its host, for the copy of a save" in line["error"]
    assert "set checkpoint.background to false" in line["error"]
    large = plan_config("row_wise", **sections, ingest={"batch_size": 100_000})
    line, _ = call(tmp_path, large, "--ram-gb", "0.01", "--workers", "2")
    assert "a smaller ingest.batch_size or workers.precision bfloat16" in line["error"]


def test_the_planner_s_own_limit(tmp_path: Path) -> None:
    """Catches a CPU with memory enough that is told to get more: a start's planner places 128 GiB per worker."""
    sections: dict[str, Any] = {"root": str(tmp_path / "root"), "logs": {"path": str(tmp_path)}}
    data = plan_config("row_wise", **sections).model_dump(mode="json", by_alias=True)
    data["schema"]["tables"][0] |= {"num_rows": 10**9, "dim": 64}
    line, code = call(tmp_path, parse_config(data, "test"), "--ram-gb", "2000", "--workers", "1")
    assert code == 3
    assert " of the 128 GiB within which TorchRec's planner places tables on the CPU" in line["error"]
    assert "checkpoint.background" not in line["error"]
    assert line["missing_bytes"] == pytest.approx(10**9 * 4 * 65 - 128 * 2**30, rel=0.01)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--device", "cuda"], "a plan for cuda needs --hbm-gb, the memory of a worker in 10^9 bytes"),
        (["--hbm-gb", "80"], "a plan for cpu needs --ram-gb"),
        ([*CUDA, "--workers", "0"], "--workers is 0, expected a positive number"),
        ([*CUDA, "--hbm-gb", "-1"], "--hbm-gb is -1, expected a positive number"),
        ([*CUDA, "--hbm-gb", "nan"], "--hbm-gb is nan, expected a positive number"),
        ([*CUDA, "--workers-per-host", "0"], "--workers-per-host is 0"),
        ([*CUDA, "--workers", "12"], "12 workers do not fill hosts of 8"),
        ([*CUDA, "--workers", "80"], "table 'context' has 64 rows for 80 workers"),
        ([*CUDA, "--price-per-worker-hour", "3"], "--price-per-worker-hour needs --rows-per-s-per-worker"),
        ([*CUDA, "--rows-per-day", "0"], "--rows-per-day is 0"),
        ([*CUDA, "--set", "sharding.tables.usr=row_wise"], "sharding.tables names ['usr']"),
    ],
)
def test_bad_input(tmp_path: Path, logs: Path, options: list[str], expected: str) -> None:  # noqa: F811
    """Catches a wrong argument that is planned with, or that ends as a failure."""
    line, code = call(tmp_path, project(tmp_path, logs), *options)
    assert code == 2, line
    assert line["error"].startswith(expected)
    assert not (tmp_path / "root").exists()


def test_nothing_of_ray_is_started(tmp_path: Path, logs: Path) -> None:  # noqa: F811
    """Catches a plan that starts a Ray, or leaves any process behind."""
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    before = ray.is_initialized()
    assert call(tmp_path, project(tmp_path, logs), *CUDA)[1] == 0
    assert ray.is_initialized() == before
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= children


def test_help_waits_for_no_import() -> None:
    """Catches a `--help` that imports torch first."""
    code = (
        "import sys\nsys.argv = ['plan', '--help']\nfrom jobs import plan\nfrom jobs.command import command\n"
        "try:\n    command(plan.add_arguments, plan.run)\nfinally:\n"
        "    print([name for name in ('torch', 'torchrec', 'ray', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--hbm-gb" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("place", range(6))
def test_the_page_shows_the_output(place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a page with figures that the command does not print any more."""
    page = (ROOT / "docs/plan.md").read_text()
    found = re.findall(r"^    python -m jobs\.plan ([^\n]*)\n\n```\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(found) == 6
    arguments, output = found[place]
    parser, shown = argparse.ArgumentParser(), list[str]()
    plan.add_arguments(parser)
    monkeypatch.setattr(plan, "show", shown.append)
    monkeypatch.chdir(ROOT)
    elsewhere = ["--set", f"root={tmp_path}", "--set", f"logs.path={tmp_path}"]
    line, _ = outcome(plan.run, parser.parse_args([*shlex.split(arguments), *elsewhere]))
    printed = [*shown[0].splitlines(), line.get("error", "")]
    assert [text for text in output.splitlines() if text not in printed] == []


# --- Checks of the inputs ---


def test_the_schema_against_the_newest_day(tmp_path: Path, logs: Path) -> None:  # noqa: F811
    """Catches a plan for a log that the training would refuse, and one of a log that is not there that fails."""
    newest = check_newest_day(project(tmp_path, logs))
    assert not isinstance(newest, str)
    assert (newest.day, newest.rows) == ("2026-01-03", ROWS_PER_DAY)
    assert check_newest_day(project(tmp_path, tmp_path / "none")) == f"{tmp_path}/none has no day yet"
    config = project(tmp_path, logs).model_dump(mode="json", by_alias=True)
    config["schema"]["features"][0]["column"] = "no_such_column"
    line, code = call(tmp_path, parse_config(config, "test"), *CUDA)
    assert code == 3
    assert "dt=2026-01-03" in line["error"]
    assert "no_such_column" in line["error"]


def test_statistics_of_the_line(tmp_path: Path, logs: Path) -> None:  # noqa: F811
    """Catches statistics that are not read, or that are those of another schema."""
    config = project(tmp_path, logs)
    assert read_statistics(config) is None
    assert ids_of_tables(config, None) == []
    print_ = config.log_schema.fingerprint()
    ids = {"user": 1000, "video": 10, "context": 20}
    made = Statistics(days=[], rows=9, numbers={}, distinct_ids=ids, missing_ids={}, schema_fingerprint=print_)
    storage = Line.of(config.root, config.line).storage
    storage.write(STATISTICS, seal(made.model_dump(mode="json")))
    found = read_statistics(config)
    assert found == made
    user, video, _ = ids_of_tables(config, found)
    assert (user.table, user.ids, user.rows) == ("user", 1000, 500)
    assert user.colliding > 0.8
    assert video.colliding < 0.02
    line, code = call(tmp_path, config, *CUDA)
    assert code == 0
    assert any(text.startswith("table user: 1,000 ids over 500 rows, 86% of the ids") for text in line["warnings"])
    storage.write(STATISTICS, seal(made.model_copy(update={"schema_fingerprint": "0"}).model_dump(mode="json")))
    line, code = call(tmp_path, config, *CUDA)
    assert code == 2
    assert "was made for schema 0" in line["error"]


@pytest.mark.parametrize(("ids", "rows"), [(1, 1), (2, 1), (300, 1000), (5000, 1000), (10, 100_000)])
def test_expected_collisions(ids: int, rows: int) -> None:
    """Catches a share of rows, or of pairs, in the place of the share of ids."""
    random = np.random.default_rng(1)
    shares = []
    for _ in range(200):
        places = random.integers(0, rows, ids)
        shares.append(float((np.bincount(places)[places] > 1).mean()))
    assert colliding_share(ids, rows) == pytest.approx(np.mean(shares), abs=0.01)


def test_the_object_store() -> None:
    """Catches a store that cannot hold the units of its workers and is not mentioned."""
    row, config = RowMemory(encoded=1000, batch=1, activations=1), plan_config()
    assert len(warn_of_inputs(config, [], row, 2, 1)) == 0  # 3 units of 62.5 MiB, and 512 MiB, in 1,024
    (text,) = warn_of_inputs(config, [], row, 2, 3)
    assert text.startswith("object store: 3 workers with 3 units of up to 62 MiB each")
    (text,) = warn_of_inputs(config, [], row, 9, 1)
    assert text == (
        "ingest.object_store_mb is 512, and 9 workers with 3 units of up to 65,536 rows each, 1,000 bytes a row, need "
        "1,688: set it to 1688, or lower ingest.unit.max_rows or ingest.prefetch_units"
    )


def test_a_training_without_room_for_its_units() -> None:
    """Catches 512 workers that share the room of 40 units, so that most of them wait all day."""
    config = plan_config()
    row_bytes = encoded_row_bytes(config.log_schema)
    assert row_bytes == pytest.approx(measure_rows(config).encoded)
    log = DayLog("2026-03-01", Units(Unit("2026-03-01", "file", n, 0, 50_000, whole=True) for n in range(900)), {})
    check_room_for_units(config, [log])
    workers = config.workers.model_copy(update={"num": 512})
    many = config.model_copy(update={"workers": workers})
    needed = math.ceil(512 * 3 * 50_000 * row_bytes / 2**20)
    with pytest.raises(
        DataError, match=rf"^2026-03-01: ingest\.object_store_mb is 512, .* set it to {needed}, or"
    ) as caught:
        check_room_for_units(many, [log])
    assert "\n" not in str(caught.value)
    enough = config.ingest.model_copy(update={"object_store_mb": needed})
    check_room_for_units(many.model_copy(update={"ingest": enough}), [log])
    check_room_for_units(many, [DayLog("2026-03-01", Units(log.units[:3]), {})])  # all of it has room


def test_the_cost_of_a_day() -> None:
    """Catches a cost that grows with the number of workers, or hours that do not shrink with it."""
    one, two = daily_cost(1, 1000.0, 36_000_000, 2.5), daily_cost(2, 1000.0, 36_000_000, 2.5)
    assert (one.hours_per_day, one.cost_per_day) == (10.0, 25.0)
    assert (two.hours_per_day, two.cost_per_day, two.rows_per_s) == (5.0, 25.0, 2000.0)
    assert daily_cost(1, 1000.0, 1, None).cost_per_day is None
