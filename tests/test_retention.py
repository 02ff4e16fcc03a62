"""Retention of checkpoints over several passes, and what a comparison does with its passes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_runs import DAYS, logs, make_config

from pipeline.config.project import Config
from pipeline.lineage.audit import audit_line
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.log_passes.statistics import fit_statistics
from pipeline.studies import trainings
from pipeline.studies.comparison import Comparison, ComparisonPlan
from pipeline.studies.trainings import Trainings, Variant
from pipeline.trainer.train_line import train

__all__ = ["logs"]  # a fixture


@pytest.mark.parametrize(("keep_days", "left"), [(None, 6), (2, 2)])
def test_ends_of_earlier_passes(
    logs: Path, local_training: None, tmp_path: Path, keep_days: int | None, left: int
) -> None:
    """Catches the ends of all passes but the last, which no entry names and nobody removes: 80 of 120 checkpoints."""
    config = make_config(
        logs, tmp_path, ingest={"batch_size": 512}, workers={"num": 1}, checkpoint={"keep_days": keep_days}
    )
    fit_statistics(config, DAYS)
    result = train(config, DAYS, 3)
    line = Line.of(config.root, config.line)
    kept = {manifest.checkpoint for manifest in line.manifests()}
    assert len(kept) == left
    assert {entry.checkpoint for entry in Ledger(line).chain()} <= kept
    assert result["checkpoint"] in kept
    assert audit_line(config, None)["result"].startswith("every row once")


def _plan(**changed: Any) -> ComparisonPlan:
    plan = ComparisonPlan(name="a", models=("single", "mmoe"), train_days=tuple(DAYS), test_days=("2026-01-03",))
    return replace(plan, **changed)


def test_passes_are_a_key_of_a_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a comparison of three passes that makes one, or finds the results of one, or makes all others anew."""
    config = make_config(tmp_path, tmp_path)
    assert {variant.passes for variant in Comparison(config, _plan(passes=3)).variants(1)} == {3}
    many = Trainings(config, "many", keep_checkpoints=False)
    once, again, thrice = (many.work_of(Variant("a", config, tuple(DAYS), n), ["2026-01-03"]) for n in (1, 1, 3))
    assert once.line == again.line != thrice.line
    kept = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"keep_days": 2})})
    # Else its figures would be those of the last two days.
    assert many.work_of(Variant("a", kept, tuple(DAYS)), ["2026-01-03"]).config.checkpoint.keep_days is None
    assert "passes" not in once.inputs  # as before there was this key
    asked: list[tuple[list[str], int]] = []

    def note(read: Config, configs: list[Config], days: tuple[str, ...], passes: int) -> list[dict[str, Any]]:
        asked.append(([one.line for one in configs], passes))
        return [{"checkpoint": "none"} for _ in configs]

    monkeypatch.setattr(trainings, "train_together", note)
    monkeypatch.setattr(trainings, "trained_figures", lambda work, checkpoint: {})
    monkeypatch.setattr(Trainings, "fit_statistics", lambda *_: None)
    many.trained([once, thrice])
    assert asked == [([once.line], 1), ([thrice.line], 3)]
