"""Which changes of a configuration a checkpoint goes on under, and which are refused, by name."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from records import manifest_of, write_manifest
from train_steps import make_config

from features.errors import DataError
from pipeline.config.load import parse_config
from pipeline.config.project import Config
from pipeline.lineage.choose_start import start_of
from pipeline.lineage.compatible import check_same_schema
from pipeline.lineage.line import Line
from pipeline.lineage.manifest import declared
from pipeline.lineage.records import Manifest, RunScope

DAY = "2026-01-01"

THREE: dict[str, Any] = {"tasks": [{"name": name, "label": name} for name in ("click", "share", "buy")]}
BOUND: dict[str, Any] = {"order": "buy", "click": "click", "convert": "share", "weight": 0.1}


def _config(**changed: Any) -> Config:
    data = make_config().model_dump(mode="json", by_alias=True)
    return parse_config(data | {"schema": data["schema"] | THREE} | changed, "test")


def _manifest(config: Config, *, without: tuple[str, ...] = ()) -> Manifest:
    """Return the manifest of a checkpoint that was trained under a configuration; an older one lacks keys of today."""
    declared = config.model_dump(mode="json", by_alias=True)
    kept = {key: value for key, value in declared.items() if key not in without}
    checkpoint = "checkpoints/2026-01-01/000001/20"
    return manifest_of(checkpoint=checkpoint, config=kept, schema_fingerprint=config.log_schema.fingerprint())


GRADNORM: dict[str, Any] = {"kind": "gradnorm", "alpha": 1.5}
BALANCINGS: dict[str, dict[str, Any]] = {
    "schedule": {"kind": "schedule"},
    "uncertainty": {"kind": "uncertainty"},
    "metabalance": {"kind": "metabalance", "targets": ["click"]},
    "gradnorm": GRADNORM,
    "pcgrad": {"kind": "pcgrad"},
}


@pytest.mark.parametrize("now", BALANCINGS)
@pytest.mark.parametrize("then", BALANCINGS)
def test_another_kind_of_balancing_is_refused(then: str, now: str) -> None:
    """Catches a method whose memory is another's, or lost without a word; of the same kind it goes on."""
    manifest, config = _manifest(_config(loss_balancing=BALANCINGS[then])), _config(loss_balancing=BALANCINGS[now])
    message = f"trained with loss_balancing {then}, the config has {now}: restore the old config, or .* jobs.migrate"
    with contextlib.nullcontext() if then == now else pytest.raises(DataError, match=message):
        check_same_schema(config, manifest)


def test_a_checkpoint_from_before_balancing_has_the_schedule() -> None:
    """Catches a line that cannot go on because its manifests lack a key that has come since."""
    manifest = _manifest(_config(), without=("loss_balancing",))
    check_same_schema(_config(), manifest)
    with pytest.raises(DataError, match="trained with loss_balancing schedule, the config has pcgrad"):
        check_same_schema(_config(loss_balancing=BALANCINGS["pcgrad"]), manifest)


@pytest.mark.parametrize(
    "settings",
    [
        {"workers": {"min": 1, "max": 2}},  # a config that was written out has all its keys, `num` too
        {"line": "click+share-0123456789ab"},  # of jobs.group_tasks: no name that a person may give
    ],
)
def test_a_line_goes_on_with_another_setting_of_no_matter(settings: dict[str, Any], tmp_path: Path) -> None:
    """Catches a valid configuration that cannot be read again once it was written out."""
    names = {"root": str(tmp_path)} | {key: settings[key] for key in settings if key == "line"}
    config = _config(**{key: settings[key] for key in settings if key != "line"}).model_copy(update=names)
    line, run = Line.of(config.root, config.line), RunScope(days=(DAY,), passes=1)
    attempt, _ = line.begin_attempt([DAY], "a", lambda: None)
    name = f"checkpoints/{DAY}/{attempt}/20"
    write_manifest(line, name, _manifest(config), run=run, day=DAY, attempt=attempt, step=20)
    ray = config.ray.model_copy(update={"num_cpus": 7})
    start = start_of(declared(config.model_copy(update={"ray": ray})), line, [DAY], 1)
    assert start is not None
    assert start.checkpoint == name


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ({"loss_balancing": GRADNORM}, {"loss_balancing": GRADNORM | {"alpha": 1.0}}),
        ({}, {"loss_weights": {"tasks": {"share": {"initial": 0.5}}}}),
        ({}, {"kl_bounds": [BOUND]}),
        ({"kl_bounds": [BOUND]}, {"kl_bounds": [BOUND | {"weight": 0.2, "stop_gradient": "order"}]}),
        ({"kl_bounds": [BOUND]}, {}),
    ],
)
def test_what_has_no_memory_may_change_from_day_to_day(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Catches a rate, a loss weight or a bound that a line is bound to for ever."""
    check_same_schema(_config(**now), _manifest(_config(**then)))


def test_a_checkpoint_from_before_bounds_goes_on() -> None:
    """Catches a key that has come since and that is looked up where it is not."""
    check_same_schema(_config(kl_bounds=[BOUND]), _manifest(_config(), without=("kl_bounds",)))


def test_another_model_section_is_refused() -> None:
    """Catches weights that are loaded into another network; the other tests could not fail without this one."""
    model = _config().model.model_dump(mode="json") | {"towers": [9]}
    with pytest.raises(DataError, match="trained with another model section"):
        check_same_schema(_config(model=model), _manifest(_config()))
