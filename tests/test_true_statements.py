"""Statements of the documentation that were wrong once, held against the code."""

import re
from pathlib import Path

import pyarrow as pa

from features.encoding import Encoder
from models.batch import LogBatch
from pipeline.ingest.batcher import collate

ROOT = Path(__file__).parents[1]


def test_labels_outside_of_the_space_are_0(tiny_encoder: Encoder) -> None:
    """Catches a docstring that says NaN where the code writes 0."""
    assert "0 outside the space" in " ".join(str(LogBatch.__doc__).split())
    columns = {"number": [1], "video": [1], "history": [[1]], "click": [1], "liked": pa.array([None], pa.bool_())}
    arrays = {name: values if isinstance(values, pa.Array) else pa.array(values) for name, values in columns.items()}
    rows = tiny_encoder.encode(arrays | {"slot": pa.array([0])})
    batch = collate(tiny_encoder.schema, [(rows, 0, 1)], 1)
    outside = ~batch.in_space
    assert outside.any()
    assert batch.labels[outside].tolist() == [0.0] * int(outside.sum())


def test_what_is_not_there_yet() -> None:
    """Catches a README that promises what no command does, or forgets to say that it is missing."""
    readme = " ".join((ROOT / "README.md").read_text().split())
    found = re.search(r"\*\*Not there yet\*\*: ([^.]*)\.", readme)
    assert found is not None
    for word, command in {"backfill": "backfill", "schedule": "launch", "Kubernetes": "submit"}.items():
        assert (word in found[1]) != (ROOT / f"jobs/{command}.py").exists()


def test_evaluations_have_intervals_and_comparisons_pages() -> None:
    """Catches a page that says that there are neither."""
    text = (ROOT / "docs/evaluation.md").read_text().lower()
    assert "interval" in text
    assert not re.search(r"\bno (intervals|reports)\b", text)
