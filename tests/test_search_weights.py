"""The search for exponents: known best ones, constraints that hold, equal runs, and bad input in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from predicted_days import change_record, run_command, write_config, write_predictions

from jobs import search_weights
from pipeline.config.load import load_config
from pipeline.config.yaml_text import read_yaml_file
from pipeline.scoring.objectives import Constraint, Objective, TaskRows
from pipeline.storage.files import Storage

DAYS = ("2026-01-01", "2026-01-02")
START = {"kind": "product", "exponents": {"ctr": 1.0, "shr": 0.0}, "top": {"by": "user_id"}}


def _columns(random: np.random.Generator, num_rows: int = 1500) -> dict[str, Any]:
    """Shares follow p(ctr) p(shr)^2, clicks p(ctr); a click is known of three rows of four, and weights are 1 or 3."""
    ctr, shr = random.random((2, num_rows)).astype(np.float32) * 0.9 + 0.05
    quality = np.log(ctr) + 2 * np.log(shr) + random.normal(0, 0.1, num_rows)
    return {
        "user_id": pa.array(random.integers(0, 60, num_rows)),
        "prediction_ctr": pa.array(ctr),
        "prediction_vtr": pa.array(ctr),
        "prediction_vcr": pa.array(ctr),
        "prediction_shr": pa.array(shr),
        "label_ctr": pa.array((random.random(num_rows) < ctr).astype(np.float32), mask=random.random(num_rows) < 0.25),
        "label_vcr": pa.array(ctr - 0.5),
        "label_shr": pa.array((quality > -1.6).astype(np.float32)),
        "weight_shr": pa.array(random.choice([1.0, 3.0], num_rows).astype(np.float32)),
    }


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Two days of predictions with labels, and a configuration that ranks by clicks alone."""
    random = np.random.default_rng(11)
    days = {day: [_columns(random) for _ in range(2)] for day in DAYS}
    write_predictions(tmp_path / "predictions", days, labels=True, keys=["user_id"])
    write_config(tmp_path / "config.yaml", START)
    return tmp_path


def run(project: Path, *others: str, days: str = f"{DAYS[0]}..{DAYS[1]}", out: str = "out") -> tuple[Any, int]:
    fixed = ["--config", str(project / "config.yaml"), "--predictions", str(project / "predictions"), "--days", days]
    return run_command(search_weights, *fixed, "--out", str(project / out), "--trials", "40", *others)


def test_known_exponents_are_found(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Catches a search that goes down, that writes other exponents than it measures, or a section that fails."""
    result, code = run(project, "--objectives", "shr:gauc")
    assert (code, result["result"]) == (0, "improved")
    exponents = result["exponents"]
    assert 1.4 < exponents["shr"] / exponents["ctr"] < 2.9
    assert result["after"]["shr:gauc"] > 0.98
    assert result["before"]["shr:gauc"] < 0.8
    values = [trial["values"][0] for trial in json.loads((project / "out/trials.json").read_text())["trials"]]
    assert np.median(values[-15:]) > 0.93  # a sampler that goes down comes to less than 0.9
    assert f"{result['after']['shr:gauc']:.5f}" in capfd.readouterr().err
    section = read_yaml_file(project / "out/chosen.yaml", "ranking")
    assert section["ranking"] == START | {"exponents": exponents}
    write_config(project / "config.yaml", section["ranking"])
    assert load_config(project / "config.yaml").ranking.exponents == exponents
    again, _ = run(project, "--objectives", "shr:gauc", out="again")
    assert again["before"] == result["after"]


def test_a_constraint_holds(project: Path) -> None:
    """Catches a constraint that is only a wish, or is measured outside its task's space."""
    limit = ["--constraint", "ctr:gauc >= current - 0.01"]
    result, _ = run(project, "--objectives", "shr:gauc", *limit)
    free, _ = run(project, "--objectives", "shr:gauc", out="free")
    assert free["after"]["ctr:gauc"] < free["before"]["ctr:gauc"] - 0.01  # so the constraint is felt
    assert result["after"]["ctr:gauc"] >= result["before"]["ctr:gauc"] - 0.01
    assert free["after"]["shr:gauc"] > result["after"]["shr:gauc"] > result["before"]["shr:gauc"]
    trials = json.loads((project / "out/trials.json").read_text())
    assert {trial["feasible"] for trial in trials["trials"]} == {True, False}
    assert all(trial["feasible"] for trial in trials["front"])


def test_the_front_is_drawn_and_nothing_is_paid_for(project: Path) -> None:
    """Catches a dominated point on the front, and a chosen point that pays for one task with another."""
    result, _ = run(project, "--objectives", "ctr:gauc,shr:ndcg@5")
    trials = json.loads((project / "out/trials.json").read_text())
    front = np.array([trial["values"] for trial in trials["front"]])
    everyone = np.array([trial["values"] for trial in trials["trials"]])
    assert len(front) > 1
    for point in front:
        assert not ((everyone >= point).all(1) & (everyone > point).any(1)).any()
    for values in everyone:
        assert (front >= values).all(1).any()
    assert all(result["after"][one] >= result["before"][one] for one in ("ctr:gauc", "shr:ndcg@5"))
    svg = (project / "out/front.svg").read_text()
    assert svg.startswith("<svg")
    assert all(text in svg for text in (">ctr:gauc<", ">shr:ndcg@5<", ">on the front<", ">chosen<"))


def test_two_runs_with_a_seed_are_equal(project: Path) -> None:
    """Catches a sampler without the seed, and a result that hangs on anything else."""
    runs = [run(project, "--objectives", "ctr:gauc,shr:gauc", "--seed", seed, out=out)[0] for seed, out in SEEDS]
    files = [{path.name: path.read_bytes() for path in (project / out).iterdir()} for _, out in SEEDS]
    assert runs[0] | {"out": ""} == runs[1] | {"out": ""}
    assert set(files[0]) == {"chosen.yaml", "front.svg", "trials.json"}
    assert files[0] == files[1]
    assert files[0]["trials.json"] != files[2]["trials.json"]


SEEDS = (("3", "one"), ("3", "other"), ("4", "third"))


def test_rows_beyond_memory_are_sampled_by_user(project: Path) -> None:
    """Catches a sample of rows, which would thin out every user, and a sample that is not said."""
    whole, _ = run(project, "--objectives", "shr:gauc")
    sampled, _ = run(project, "--objectives", "shr:gauc", "--rows", "2000", out="sampled")
    assert (whole["rows"], whole["share_of_groups"]) == (6000, 1.0)
    assert sampled["share_of_groups"] == pytest.approx(1 / 3)
    assert 1000 < sampled["rows"] < 3000
    assert sampled["before"]["shr:gauc"] == pytest.approx(whole["before"]["shr:gauc"], abs=0.03)


def test_rows_of_a_task() -> None:
    """Catches a row outside of the task's space, or of a group without a positive, that is measured."""
    labels = np.array([1, np.nan, 0, 0, 0, 1.0])
    found = TaskRows.of(np.array([7, 7, 7, 8, 8, 9]), labels, np.ones(6))
    assert (found.rows.tolist(), found.groups.tolist()) == ([0, 2, 5], [0, 0, 2])


def test_texts_of_objectives_and_constraints() -> None:
    """Catches a text that is read as another objective."""
    assert Objective.parse("share:ndcg@10") == Objective("share", 10)
    assert str(Objective("share", 10)) == "share:ndcg@10"
    assert Constraint.parse("a:gauc>=current") == Constraint(Objective("a"))
    assert Constraint.parse("a:ndcg@3 >= current - .002") == Constraint(Objective("a", 3), 0.002)


def _write(project: Path, ranking: Any) -> None:
    write_config(project / "config.yaml", ranking)


def _without_labels(project: Path) -> None:
    change_record(project / "predictions", labels=False)


def _filled(project: Path) -> None:
    (project / "out").mkdir()
    (project / "out/notes.txt").write_text("mine")


LEXICOGRAPHIC = {"kind": "lexicographic", "tasks": [{"task": "ctr"}], "top": {"by": "user_id"}}


@pytest.mark.parametrize(
    ("breaking", "others", "code", "message"),
    [
        (None, ["--objectives", "shr"], 2, "objective 'shr': expected TASK:gauc or TASK:ndcg@K"),
        (None, ["--objectives", "sh:gauc"], 2, "objective 'sh:gauc': there is no task 'sh': did you mean 'shr'?"),
        (None, ["--objectives", "vcr:gauc"], 2, "task 'vcr' is regression; GAUC is for binary tasks"),
        (None, ["--objectives", "vcr:ndcg@5"], 3, "objective 'vcr:ndcg@5': a label is below 0"),
        (None, ["--objectives", "vtr:gauc"], 3, "has no column 'label_vtr': did you mean 'label_vcr'?"),
        (None, ["--constraint", "shr:gauc>0.5"], 2, "constraint 'shr:gauc>0.5': expected e.g."),
        (None, ["--trials", "0"], 2, "0 trials, seed 0"),
        (None, ["--most", "0.5"], 2, "the largest present exponent, 1"),
        (lambda project: _write(project, None), [], 2, "the config has no section ranking"),
        (lambda project: _write(project, LEXICOGRAPHIC), [], 2, "the config has ranking.kind lexicographic"),
        (_without_labels, [], 3, "has no labels: predict these days with labels"),
        (_filled, [], 2, "is not empty: name another directory"),
    ],
)
def test_bad_input_ends_in_one_line(project: Path, breaking: Any, others: Any, code: int, message: str) -> None:
    """Catches a traceback, a wrong exit code, and a half-made result of a refused command."""
    if breaking:
        breaking(project)
    before = {path for path in project.rglob("*") if path.is_file()}
    result, got = run(project, *others)
    assert message in result["error"]
    assert (got, "\n" in result["error"]) == (code, False)
    assert {path for path in project.rglob("*") if path.is_file()} == before


def test_a_read_only_out_ends_in_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a target that is found to be read-only after the search."""

    def refuse(self: Storage, name: str, data: bytes) -> None:
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr(Storage, "write", refuse)
    result, code = run(project, "--trials", "0")
    assert (code, "out cannot be written (Permission denied)" in result["error"]) == (2, True)
