"""The declared schema: what it refuses, which columns it reads, and what its fingerprint covers."""

from typing import Any

import pytest
from pydantic import ValidationError

from features.schema import Schema
from features.tables import TableInit

_VOCABULARY = {"kind": "vocabulary", "min_count": 2, "keep_days": 30, "tail_rows": 3}


def _declared(**changes: Any) -> dict[str, Any]:
    declared: dict[str, Any] = {
        "tables": [{"name": "video", "num_rows": 100, "dim": 8}, {"name": "age", "num_rows": 5, "dim": 4}],
        "features": [
            {"kind": "id", "name": "video_id", "table": "video"},
            {"kind": "sequence", "name": "watched", "column": "watched_ids", "table": "video", "max_length": 20},
            {"kind": "dense", "name": "duration", "column": "duration_ms"},
            {"kind": "bucket", "name": "age", "table": "age", "num_buckets": 4},
        ],
        "tasks": [
            {"name": "ctr", "label": "click", "truth": "p_click"},
            {"name": "vtr", "label": "play_ms >= 7000", "space": "click == 1", "weight": "1 + duration_ms / 1000"},
        ],
        "slot": "slot",
    }
    return declared | changes


def _changed(part: str, index: int, **values: Any) -> dict[str, Any]:
    """The declaration with some keys of one entry changed; None removes a key."""
    declared = _declared()
    entry = declared[part][index] | values
    declared[part][index] = {key: value for key, value in entry.items() if value is not None}
    return declared


def _refusal(declared: dict[str, Any]) -> tuple[str, str]:
    """The dotted path and the message of the only error."""
    with pytest.raises(ValidationError) as caught:
        Schema.model_validate(declared)
    (error,) = caught.value.errors()
    return ".".join(map(str, error["loc"])), error["msg"]


def test_the_declaration_stands():
    """Negative control of every refusal below: the declaration that they change is itself right."""
    schema = Schema.model_validate(_declared())
    assert [feature.name for feature in schema.sparse_features] == ["video_id", "watched", "age"]
    assert [feature.name for feature in schema.dense_features] == ["duration"]
    assert schema.task_names == ["ctr", "vtr"]


@pytest.mark.parametrize(
    ("declared", "path", "message"),
    [
        (_declared(slots="slot"), "slots", "Extra inputs"),
        (_changed("tables", 0, rows=5), "tables.0.rows", "Extra inputs"),
        (_changed("features", 0, tabel="video"), "features.0.id.tabel", "Extra inputs"),
        (_changed("features", 2, log1q=True), "features.2.dense.log1q", "Extra inputs"),
        (_changed("tasks", 1, sample_space="click == 1"), "tasks.1.sample_space", "Extra inputs"),
        (_changed("features", 0, table=None), "features.0.id.table", "Field required"),
        (_changed("features", 0, kind="ids"), "features.0", "'ids'"),
        (_changed("features", 0, name="video id"), "features.0.id.name", "match pattern"),
        (_changed("features", 1, max_length=0), "features.1.sequence.max_length", "greater than or equal to 1"),
        (_changed("features", 1, keep="latest"), "features.1.sequence.keep", "'first' or 'last'"),
        (_changed("features", 2, clip=0), "features.2.dense.clip", "greater than 0"),
        (_changed("tables", 0, num_rows=0), "tables.0.num_rows", "greater than or equal to 1"),
        (_changed("tables", 0, num_rows=2**31), "tables.0.num_rows", "less than or equal to 2147483647"),
        (_changed("tables", 0, init={"kind": "normal"}), "tables.0.init", "needs its scale"),
        (_changed("tables", 0, id_mapping="vocabulary"), "tables.0.id_mapping", "valid dictionary"),
        (_changed("tables", 0, id_mapping={"kind": "vocab"}), "tables.0.id_mapping", "'vocab'"),
        (_changed("tables", 0, id_mapping=_VOCABULARY | {"tail_rows": 100}), "tables.0", "100 of them its tail"),
        (
            _changed("tables", 0, id_mapping=_VOCABULARY | {"tail_rows": 0}),
            "tables.0.id_mapping.vocabulary.tail_rows",
            "greater than or equal to 1",
        ),
        (_declared(features=[]), "features", "at least 1"),
        (_declared(tasks=[]), "tasks", "at least 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_keys_and_values_are_named_by_their_path(declared: dict[str, Any], path: str, message: str):
    """A misspelt key is ignored and its default trains a model, or the error does not say where it is."""
    found_path, found = _refusal(declared)
    assert found_path == path
    assert message in found


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (
            _changed("features", 0, table="videos"),
            "feature 'video_id' reads table 'videos', declared are ['age', 'video']: declare it",
        ),
        (
            _declared(tables=[*_declared()["tables"], {"name": "author", "num_rows": 5, "dim": 4}]),
            "tables ['author'] are read by no feature: remove them",
        ),
        (
            _declared(tables=[*_declared()["tables"], _declared()["tables"][0]]),
            "tables named ['video'] are declared twice: rename one",
        ),
        (_changed("features", 2, name="video_id"), "features named ['video_id'] are declared twice"),
        (_changed("tasks", 1, name="ctr"), "tasks named ['ctr'] are declared twice"),
        (
            _changed("features", 3, num_buckets=5),
            "feature 'age' has 5 buckets and one for missing values, its table 'age' has 5 rows: declare at least 6",
        ),
        (
            _declared(tasks=[{"name": "ctr", "label": "click", "role": "auxiliary"}]),
            "every task is auxiliary: at least one needs role: main",
        ),
        (
            _changed("tables", 1, id_mapping=_VOCABULARY),
            "feature 'age' is bucketised, its table 'age' gives rows to ids: declare a table of its own",
        ),
        (_changed("tasks", 0, label="click >"), "expression 'click >' does not parse"),
        (_changed("tasks", 1, space="exec('x')"), "expression \"exec('x')\" calls 'exec'"),
        (_changed("tasks", 1, weight="2"), "expression '2' reads no column"),
        (_changed("tasks", 0, truth="p[0]"), "expression 'p[0]' has"),
        (_changed("tasks", 0, kind="multiclass"), "task 'ctr': num_classes is for multiclass tasks"),
        (_changed("tasks", 0, num_classes=3), "task 'ctr': num_classes is for multiclass tasks"),
        (_changed("tasks", 0, loss="huber"), "task 'ctr': ['loss'] are for regression tasks, this one is binary"),
        (_changed("tasks", 0, log1p_target=True), "task 'ctr': ['log1p_target'] are for regression tasks"),
        (_changed("tasks", 0, kind="regression", loss="poisson", log1p_target=True), "logarithmic link of its own"),
        (_changed("tasks", 0, kind="regression", loss="poisson", link="sigmoid"), "logarithmic link of its own"),
        (_changed("tasks", 0, kind="regression", log1p_target=True, link="sigmoid"), "no log1p_target with a sigmoid"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_declarations_that_contradict_themselves_are_refused(declared: dict[str, Any], message: str):
    """A contradiction passes, and is met hours later as an index out of range, or never."""
    _, found = _refusal(declared)
    assert message in found
    assert "\n" not in found


def test_an_uncommon_init_scale_is_checked_by_itself():
    """`normal` without a scale would take uniform's default."""
    assert TableInit(kind="normal", scale=0.01).scale == 0.01
    with pytest.raises(ValidationError, match="standard deviation"):
        TableInit(kind="normal")


def test_columns_that_are_read():
    """A column is decoded twice, is missing, or the synthetic truth leaks into what training reads."""
    schema = Schema.model_validate(_declared())
    read = ["video_id", "watched_ids", "duration_ms", "age", "click", "play_ms", "slot"]
    assert schema.columns() == read
    assert sorted(schema.columns(with_truth=True)) == sorted([*read, "p_click"])


def test_a_label_that_is_the_truth_is_still_read():
    """A task whose label is its own truth (noise-free logs) loses its label in training."""
    schema = Schema.model_validate(_changed("tasks", 0, truth="click"))
    assert "click" in schema.columns()


def test_a_schema_cannot_be_changed():
    """A schema that is altered after its fingerprint was recorded."""
    schema = Schema.model_validate(_declared())
    with pytest.raises(ValidationError, match="frozen"):
        schema.hash_salt = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    "declared",
    [
        _declared(hash_salt="other"),
        _declared(slot=None),
        _declared(features=_declared()["features"][::-1]),
        _declared(tasks=_declared()["tasks"][::-1]),
        _changed("tables", 0, num_rows=101),
        _changed("tables", 0, dim=9),
        _changed("features", 1, max_length=21),
        _changed("features", 1, keep="first"),
        _changed("features", 1, pooling="sum"),
        _changed("features", 2, log1p=True),
        _changed("tasks", 0, label="like"),
        _changed("tasks", 1, space=None),
        _changed("tasks", 0, kind="regression"),
        _changed("tables", 0, init={"scale": 0.5}),
        _changed("tables", 0, id_mapping=_VOCABULARY),
    ],
)
def test_the_fingerprint_covers_what_a_model_depends_on(declared: dict[str, Any]):
    """A checkpoint is restored under a declaration that means something else."""
    assert Schema.model_validate(declared).fingerprint() != Schema.model_validate(_declared()).fingerprint()


@pytest.mark.parametrize(
    "declared",
    [
        _changed("tasks", 0, objective="satisfaction"),
        _changed("tasks", 0, role="auxiliary"),
        _changed("tasks", 0, truth=None),
        _changed("tables", 0, id_mapping={"kind": "hashing"}),
        _changed("tasks", 0, kind="binary"),
    ],
)
def test_the_fingerprint_covers_nothing_else(declared: dict[str, Any]):
    """A checkpoint is refused although its tensors mean the same; or a key that comes later, with a default, refuses
    the checkpoints of all earlier versions.
    """
    assert Schema.model_validate(declared).fingerprint() == Schema.model_validate(_declared()).fingerprint()


def test_the_fingerprint_is_the_same_for_years():
    """A key that a later version adds, with a default, refuses all checkpoints of this one."""
    assert Schema.model_validate(_declared()).fingerprint() == "9a719b5af602"


def test_the_fingerprint_of_a_vocabulary():
    """A table that grew, or that admits others from now on, loses its checkpoints; or ids are hashed into a tail of
    another size than the one that was trained.
    """

    def fingerprint(num_rows: int = 100, **values: int) -> str:
        declared = _changed("tables", 0, num_rows=num_rows, id_mapping=_VOCABULARY | values)
        return Schema.model_validate(declared).fingerprint()

    assert fingerprint() == fingerprint(num_rows=200) == fingerprint(min_count=3) == fingerprint(keep_days=3)
    assert fingerprint() != fingerprint(tail_rows=4)


def test_the_fingerprint_does_not_depend_on_how_it_is_written():
    """Spelling out a default, another order of keys, or a round trip through JSON starts a new line of checkpoints."""
    schema = Schema.model_validate(_declared())
    spelt_out = {key: value for key, value in reversed(_declared(hash_salt="counterpoise").items())}
    assert Schema.model_validate(spelt_out).fingerprint() == schema.fingerprint()
    assert Schema.model_validate_json(schema.model_dump_json()).fingerprint() == schema.fingerprint()
    assert len(schema.fingerprint()) == 12
