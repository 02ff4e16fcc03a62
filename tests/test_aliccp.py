"""The import of Ali-CCP on hand-made lines in its published form; the data set itself is not on this machine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from features.aliccp import partitions
from features.aliccp.fields import IDS, LIST_LENGTH, LISTS, parse_features
from features.aliccp.partitions import import_aliccp
from features.encoding import Encoder, check_columns
from features.errors import ConfigError, DataError
from features.schema import Schema

ROOT = Path(__file__).parent.parent
MD5 = "bacff91692951881"
Pairs = list[tuple[str, int]]

USER: Pairs = [("101", 7), ("121", 40), ("109_14", 900), ("109_14", 901), ("150_14", 5), ("125", 63)]
ITEM: Pairs = [("205", 11), ("206", 900), ("210", 5), ("210", 6), ("508", 77), ("301", 1)]


def features(pairs: Pairs) -> str:
    """The last two cells of a line: how many, and which."""
    return f"{len(pairs)}," + "\x01".join(f"{field}\x02{number}\x031.0" for field, number in pairs)


def sample(number: int, click: int = 0, buy: int = 0, index: str = MD5, pairs: Pairs = ITEM) -> str:
    return f"{number},{click},{buy},{index},{features(pairs)}\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two users in each half, of whom the second has no features."""
    directory = tmp_path / "source"
    directory.mkdir()
    for half in ("train", "test"):
        (directory / f"common_features_{half}.csv").write_text(f"{MD5},{features(USER)}\n0f0f,0,\n")
    lines = [sample(1, click=1, buy=1), sample(2, buy=1), sample(3, click=1, index="0f0f"), sample(4)]
    (directory / "sample_skeleton_train.csv").write_text("".join(lines))
    (directory / "sample_skeleton_test.csv").write_text(sample(5, pairs=[("205", 12), ("999", 1), ("999", 2)]))
    return directory


def read_days(logs: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        folder.name: [
            row for part in sorted(folder.glob("*.parquet")) for row in pq.ParquetFile(part).read().to_pylist()
        ]
        for folder in sorted(logs.iterdir())
    }


def test_a_row_is_a_line_of_the_skeleton_with_what_its_user_shares(source: Path, tmp_path: Path) -> None:
    """Catches a join with another user's line, a field in another's column, and an impossible row that is kept."""
    found = import_aliccp(source, tmp_path / "logs")
    days = read_days(tmp_path / "logs")
    assert list(days) == ["dt=2017-01-01", "dt=2017-01-02"]
    train = days["dt=2017-01-01"]
    assert [(row["sample_id"], row["click"], row["buy"]) for row in train] == [(1, 1, 1), (3, 1, 0), (4, 0, 0)]
    assert {name: value for name, value in train[0].items() if value not in (None, [])} == {
        "sample_id": 1,
        "click": 1,
        "buy": 1,
        "user_id": 7,
        "user_profile": 40,
        "user_age": 63,
        "past_category_id": [900, 901],
        "past_intention_id": [5],
        "item_id": 11,
        "category_id": 900,
        "intention_id": [5, 6],
        "category_in_past": [77],
        "context": 1,
    }
    assert (train[1]["user_id"], train[1]["past_category_id"], train[1]["item_id"]) == (None, [], 11)
    assert train[2]["user_id"] == 7
    assert found.rows == {"2017-01-01": 3, "2017-01-02": 1}
    assert (found.num_impossible, found.unknown_fields) == (1, {"999": 1})


def test_days_are_cut_into_row_groups_and_files(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches rows that are lost or doubled where a group or a file ends, and memory that grows with the log."""
    monkeypatch.setattr(partitions, "ROW_GROUP_ROWS", 4)
    monkeypatch.setattr(partitions, "FILE_ROWS", 8)
    lines = [sample(number, buy=int(number % 3 == 0)) for number in range(26)]  # of which 9 are impossible
    (source / "sample_skeleton_train.csv").write_text("".join(lines))
    assert import_aliccp(source, tmp_path / "logs").num_impossible == 9
    footers = [pq.read_metadata(part) for part in sorted((tmp_path / "logs" / "dt=2017-01-01").glob("*.parquet"))]
    assert [[f.row_group(n).num_rows for n in range(f.num_row_groups)] for f in footers] == [[4, 4], [4, 4], [1]]
    rows = read_days(tmp_path / "logs")["dt=2017-01-01"]
    assert [row["sample_id"] for row in rows] == [number for number in range(26) if number % 3]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "sample_skeleton_train.csv",
            sample(1) + sample(2, index="beef"),
            "line 2: common_feature_index 'beef', expected one that common_features_train.csv has",
        ),
        ("sample_skeleton_train.csv", "1,2,0,0f0f,0,\n", "line 1: click '2', expected 0 or 1"),
        ("sample_skeleton_train.csv", "1,0,,0f0f,0,\n", "line 1: buy '', expected 0 or 1"),
        ("sample_skeleton_train.csv", "x,0,0,0f0f,0,\n", "line 1: sample_id 'x', expected an integer"),
        (
            "sample_skeleton_train.csv",
            sample(1) + "2,0,0\n",
            "line 2: 3 cells, expected 6: sample_id,click,buy,common_feature_index,feature_num,feature_list",
        ),
        ("sample_skeleton_train.csv", "1,0,0,0f0f,2,205\x025\x031.0\n", "line 1: 1 features, expected '2'"),
        (
            "sample_skeleton_train.csv",
            "1,0,0,0f0f,1,205\x02x\x031.0\n",
            "line 1: feature '205\\x02x\\x031.0', expected field 0x02 id 0x03 value",
        ),
        (
            "sample_skeleton_train.csv",
            "1,0,0,0f0f,1,205\x025\x03\n",
            "line 1: feature '205\\x025\\x03', expected field",
        ),
        (
            "sample_skeleton_test.csv",
            sample(1, pairs=[("205", 1), ("205", 2)]),
            "line 1: field 205 has 2 ids, expected one",
        ),
        ("sample_skeleton_test.csv", "", " has no rows, expected impressions"),
        ("common_features_test.csv", "0f0f,0,\nbeef,0,\n0f0f,0,\n", "line 3: index '0f0f', which line 1 has"),
        ("common_features_train.csv", f"0f0f,0,\n{MD5},1,x\n", "line 2: feature 'x', expected field"),
        ("common_features_train.csv", f"{MD5},1\n", "line 1: 2 cells, expected 3: common_feature_index,"),
    ],
)
def test_what_is_not_as_published_is_refused(source: Path, tmp_path: Path, file: str, text: str, message: str) -> None:
    """Catches a half-written day, and an error that does not say where, what was got and what was expected."""
    (source / file).write_text(text)
    with pytest.raises(DataError) as caught:
        import_aliccp(source, tmp_path / "logs")
    assert str(caught.value).startswith(str(source / file))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "logs").exists()


def test_a_file_that_is_missing_or_a_day_that_is_there_is_refused(source: Path, tmp_path: Path) -> None:
    """Catches a day that is written over, and one half that is imported without the other."""
    import_aliccp(source, tmp_path / "logs")
    before = read_days(tmp_path / "logs")
    with pytest.raises(ConfigError, match=r"has \['2017-01-01', '2017-01-02'\] already"):
        import_aliccp(source, tmp_path / "logs")
    assert read_days(tmp_path / "logs") == before
    (source / "common_features_test.csv").unlink()
    with pytest.raises(DataError, match=r"common_features_test.csv is missing: unpack sample_train.tar.gz"):
        import_aliccp(source, tmp_path / "other")
    with pytest.raises(ConfigError, match="is not a directory"):
        import_aliccp(source / "none", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_list_of_features_by_hand() -> None:
    """Catches a value that is taken for the id, and the wrong end of a long list."""
    text = "109_14\x02456\x032.3979\x01205\x027\x031.0\x01109_14\x02123\x03.69\x01109_14\x02124\x03.69"
    assert parse_features(text, "4") == {"109_14": [123, 124, 456], "205": [7]}
    assert parse_features("", "0") == {}
    long = [f"110_14\x02{number}\x03{-number}" for number in range(LIST_LENGTH + 20)]
    assert parse_features("\x01".join(long), str(len(long))) == {"110_14": list(reversed(range(LIST_LENGTH)))}


def test_the_shipped_configuration_encodes_it(source: Path, tmp_path: Path) -> None:
    """Catches a column that only one of import and configuration has, a label leak, and a wrong space."""
    import_aliccp(source, tmp_path / "logs")
    config = yaml.safe_load((ROOT / "jobs/configs/aliccp.yaml").read_text())
    schema = Schema.model_validate(config["schema"])
    assert {feature.source for feature in schema.features} == {*IDS.values(), *LISTS.values()}
    table = pq.ParquetFile(tmp_path / "logs" / "dt=2017-01-01" / "part-00000.parquet").read()
    check_columns(schema, table.schema, schema.columns())
    rows = Encoder(schema, None).encode({name: table[name] for name in table.column_names})
    assert schema.task_names == ["ctr", "cvr", "ctcvr"]
    # The last row was not clicked, so it is in no space of purchases.
    np.testing.assert_array_equal(rows.labels, [[1, 1, 1], [1, 0, 0], [0, np.nan, 0]])
    assert config["loss_weights"] == {"tasks": {"cvr": {"initial": 0}}}
    assert config["model"]["entire_space"] == {"probabilities": {"ctcvr": {"given": "ctr", "then": "cvr"}}}


def test_the_command_says_what_it_did(source: Path, tmp_path: Path) -> None:
    """Catches a command whose last line is no JSON, or lacks what was left out."""
    command = [sys.executable, "-m", "jobs.import_aliccp", "--source", str(source), "--logs", str(tmp_path / "logs")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert (said["days"], said["rows"], said["impossible_rows"]) == ("2017-01-01..2017-01-02", 4, 1)
    assert said["rows_with_unknown_fields"] == {"999": 1}
