"""Inputs of a model that are refused with the configuration: none in a table, the answer, the slot beside its bias."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from features.errors import ConfigError
from features.schema import Schema
from models.assembly import column_labels
from pipeline.config.load import check_beginning, load_config, parse_config

ROOT = Path(__file__).parents[1]
CONFIGS = [file for file in (ROOT / "jobs/configs").glob("*.yaml") if "\nschema:" in file.read_text()]


def _demo() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "jobs/configs/demo.yaml").read_text())


def test_a_model_without_a_table() -> None:
    """Catches a worker that crashes in TorchRec, minutes after the start, since no feature is looked up."""
    config = _demo()
    config["schema"]["tables"] = []
    config["schema"]["features"] = [one for one in config["schema"]["features"] if one["kind"] == "dense"]
    with pytest.raises(ConfigError, match="no feature is looked up in a table: declare an id, sequence or bucket"):
        parse_config(config, "demo.yaml")


@pytest.mark.parametrize("kind", ["dense", "id", "bucket"])
def test_a_feature_that_a_label_reads(kind: str) -> None:
    """Catches a model of `play_ms >= 7000` that is given play_ms, and has an AUC of 1 until it has to score."""
    config = _demo()
    feature: dict[str, Any] = {"kind": kind, "name": "watched_ms", "column": "play_ms"}
    feature |= {"id": {"table": "context"}, "bucket": {"table": "age_bucket", "num_buckets": 4}}.get(kind, {})
    config["schema"]["features"].append(feature)
    with pytest.raises(ConfigError) as caught:
        parse_config(config, "demo.yaml")
    assert str(caught.value) == (
        "schema.features: 'watched_ms' reads column 'play_ms', which the label of task 'vcr' reads: if it is an "
        "outcome, remove the feature; if it is known before the outcome, say why with allow_outcome: REASON"
    )
    feature["allow_outcome"] = "of the user's last visit"
    parse_config(config, "demo.yaml")
    feature["allow_outcome"] = ""
    with pytest.raises(ConfigError, match="allow_outcome"):
        parse_config(config, "demo.yaml")


def test_a_reason_is_no_other_model() -> None:
    """Catches a line that has to be migrated because somebody wrote down a reason."""
    schema = Schema.model_validate(_demo()["schema"])
    without = [feature.model_copy(update={"allow_outcome": None}) for feature in schema.features]
    assert any(feature.allow_outcome for feature in schema.features)
    assert schema.model_copy(update={"features": without}).fingerprint() == schema.fingerprint()
    labels = [column_labels(feature, 2) for feature in schema.features]
    assert [column_labels(feature, 2) for feature in without] == labels  # by which a migration finds what stays


def test_the_slot_beside_its_bias() -> None:
    """Catches a network that learns from the slot what slot_bias is to take out of it, and lacks it when it scores."""
    config = _demo()
    config["model"]["slot_bias"] = {"tasks": ["ctr"], "num_slots": 8}
    parsed = parse_config(config, "demo.yaml")  # a line that was trained so goes on
    with pytest.raises(ConfigError, match=r"the slot among the inputs \(feature 'slot' reads column 'slot'\): "):
        check_beginning(parsed)
    config["schema"]["features"] = [one for one in config["schema"]["features"] if one["name"] != "slot"]
    check_beginning(parse_config(config, "demo.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_shipped_configs_are_right(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an example that its own checks refuse."""
    monkeypatch.chdir(ROOT)
    load_config(file)
