"""Vocabularies in the checkpoints of a run: they cannot change within it."""

from pathlib import Path
from typing import Any

import pytest
from faults import replace_worker
from small_runs import DAYS, logs, make_config

from features.vocabulary import Vocabulary
from pipeline.lineage.line import Line
from pipeline.log_passes.admission import read_vocabularies
from pipeline.log_passes.statistics import fit_statistics
from pipeline.trainer.train import train_worker
from pipeline.trainer.train_line import train

__all__ = ["logs"]  # a fixture


def _count_and_train(job: Any, lane: Any, calls: str) -> dict[str, Any]:
    """Train; note each serialisation of a vocabulary in a file."""
    to_arrow = Vocabulary.to_arrow

    def noted(vocabulary: Vocabulary) -> bytes:
        with Path(calls).open("a") as file:
            file.write("x")
        return to_arrow(vocabulary)

    Vocabulary.to_arrow = noted
    return train_worker(job, lane)


def test_vocabularies_are_serialised_once_a_run(
    logs: Path, tmp_path: Path, local_training: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a rank 0 that serialises millions of ids at every save, while the others wait for it."""
    config = make_config(logs, tmp_path / "root", checkpoint={"every_steps": 5, "keep": 10})
    schema = config.log_schema.model_dump()
    (video,) = (table for table in schema["tables"] if table["name"] == "video")
    video["id_mapping"] = {"kind": "vocabulary", "min_count": 1, "keep_days": 1, "tail_rows": 8}
    config = config.model_copy(update={"log_schema": type(config.log_schema).model_validate(schema)})
    fit_statistics(config, DAYS[:1])
    calls = tmp_path / "calls"
    replace_worker(monkeypatch.setattr, _count_and_train, calls=str(calls))
    train(config, DAYS[:1], passes=1)
    assert calls.read_text() == "x"
    line = Line.of(config.root, config.line)
    saved = [read_vocabularies(line.storage, one.checkpoint, config.log_schema)["video"] for one in line.manifests()]
    assert len(saved) >= 4
    assert {one.to_arrow() for one in saved} == {saved[0].to_arrow()}
