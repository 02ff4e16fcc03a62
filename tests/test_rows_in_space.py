"""Rows of each task's space in the result of a training, and a warning where a task had none."""

from pathlib import Path
from typing import Any

import pytest
from small_runs import DAYS, ROWS_PER_DAY, logs, make_config

from pipeline.config.load import parse_config
from pipeline.lineage.manifest import declared
from pipeline.log_passes.statistics import fit_statistics
from pipeline.trainer.train_line import train

__all__ = ["logs"]  # a fixture


def test_a_label_that_is_null_all_day(
    logs: Path, local_training: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a column that is no longer filled: "ctr 0.0000", exit code 0, and a task that learns nothing."""
    content: dict[str, Any] = declared(make_config(logs, tmp_path, ingest={"batch_size": 512}))
    content["schema"]["tasks"][0] |= {"label": "0 / (click * 0)", "truth": None}
    config = parse_config(content, "test")
    fit_statistics(config, DAYS[:1])
    result = train(config, DAYS[:1], 1)
    assert result["rows"] == ROWS_PER_DAY
    assert result["rows_in_space"]["ctr"] == 0
    assert 0 < result["rows_in_space"]["vcr"] < ROWS_PER_DAY
    expected = "task 'ctr' was trained on no row: its label is null, or its space is empty, on all of them"
    assert [text for text in caplog.messages if "was trained on no row" in text] == [expected]
