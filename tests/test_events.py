"""Unpooled sequences: what is declared of them, and lists that do not belong together."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from features.encoding import Encoder
from features.errors import DataError
from features.schema import Schema

EVENTS = {"kind": "sequence", "table": "video", "max_length": 3, "pooling": "none"}
KINDS = EVENTS | {"name": "kinds", "table": "kind", "aligned_with": "watched"}


def _schema(**changed: Any) -> Schema:
    return Schema.model_validate(
        {
            "tables": [{"name": "video", "num_rows": 1000, "dim": 4}, {"name": "kind", "num_rows": 50, "dim": 4}],
            "features": [EVENTS | {"name": "watched"}, KINDS | changed],
            "tasks": [{"name": "ctr", "label": "click"}],
        }
    )


def _columns(watched: list[Any], kinds: list[Any]) -> dict[str, pa.Array]:
    lists = pa.list_(pa.int64())
    return {
        "watched": pa.array(watched, lists),
        "kinds": pa.array(kinds, lists),
        "click": pa.array([0] * len(watched)),
    }


def test_the_latest_events_stay_with_their_properties() -> None:
    """Catches lists that are cut at different ends, so that an event has another one's property."""
    rows = Encoder(_schema(), None).encode(_columns([[1, 2, 3, 4, 5], [], [6]], [[5, 4, 3, 2, 1], [], [9]]))
    whole = Encoder(_schema(), None).encode(_columns([[3, 4, 5], [], [6]], [[3, 2, 1], [], [9]]))
    for got, expected in zip(rows.ids + rows.offsets, whole.ids + whole.offsets, strict=True):
        assert np.array_equal(got, expected)
    assert [offsets.tolist() for offsets in rows.offsets] == [[0, 3, 3, 4]] * 2
    order = np.array([2, 0])  # rows are shuffled with all of their events
    taken = rows.take(order)
    assert taken.ids[0].tolist() == [rows.ids[0][3], *rows.ids[0][:3]]
    assert taken.ids[1].tolist() == [rows.ids[1][3], *rows.ids[1][:3]]


@pytest.mark.parametrize(
    ("watched", "kinds", "message"),
    [
        (
            [[1], [1, 2], [1]],
            [[7], [7], []],
            r"'kinds' has a list of 1 at row 1, column 'watched' one of 2 \(2 such rows\)",
        ),
        # Both would be cut to three entries, of other events.
        ([[1, 2, 3, 4]], [[1, 2, 3, 4, 5]], "'kinds' has a list of 5 at row 0, column 'watched' one of 4"),
        ([[1], [1, None]], [[1], [1, 2]], "'watched' has a null in the list of row 1, and 1 in all"),
        ([[1], [1, 3]], [[1], [None, 2]], "'kinds' has a null in the list of row 1, and 1 in all"),
        ([[1], [1]], [[1], None], "has a list of 0 at row 1|'kinds' has a null list at row 1"),
    ],
)
def test_lists_that_do_not_belong_together_are_refused(watched: list[Any], kinds: list[Any], message: str) -> None:
    """Catches properties that would be another event's: nothing further on could see it."""
    with pytest.raises(DataError, match=message) as error:
        Encoder(_schema(), None).encode(_columns(watched, kinds))
    assert "\n" not in str(error.value)


def test_pooled_lists_may_still_hold_nulls() -> None:
    """The negative control: a null inside a list is skipped where the list is pooled, as it always was."""
    schema = _schema(pooling="sum", aligned_with=None)
    rows = Encoder(schema, None).encode(_columns([[1], [2, 3]], [[None, 1], []]))
    assert rows.offsets[1].tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"aligned_with": "clicked"}, "'kinds' is aligned with 'clicked': both must be sequences with pooling none"),
        ({"aligned_with": "kinds"}, "'kinds' is aligned with 'kinds'"),
        ({"pooling": "mean"}, "'kinds' is aligned with 'watched': both must be"),
        ({"max_length": 4}, "the last 3 entries are kept: keep the same of both, not the last 4"),
        ({"keep": "first"}, "keep the same of both, not the first 3"),
    ],
)
def test_a_wrong_alignment_is_refused(changed: dict[str, Any], message: str) -> None:
    """Catches lists that could only be cut apart from each other."""
    with pytest.raises(ValidationError, match=message):
        _schema(**changed)


def test_keys_that_are_absent_change_no_fingerprint() -> None:
    """Catches a default that enters the fingerprint: every line would refuse its own checkpoints."""
    features = [EVENTS | {"name": "watched", "pooling": "sum"}, KINDS | {"pooling": "mean", "aligned_with": None}]
    written = {"tables": _schema().model_dump()["tables"], "tasks": [{"name": "ctr", "label": "click"}]}
    old = {key: value for key, value in features[1].items() if key not in ("pooling", "aligned_with")}
    first, second = (Schema.model_validate(written | {"features": [features[0], f]}) for f in (features[1], old))
    assert first.fingerprint() == second.fingerprint()
    assert _schema().fingerprint() != first.fingerprint()
