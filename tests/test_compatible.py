"""Which changes of a configuration a checkpoint goes on under, and which are refused, by name."""

import contextlib
from typing import Any

import pytest
from test_train_step import make_config

from features.errors import DataError
from pipeline.config import Config, parse_config
from pipeline.lineage.compatible import check_same_schema
from pipeline.lineage.stored_checkpoint import Manifest

THREE: dict[str, Any] = {"tasks": [{"name": name, "label": name} for name in ("click", "share", "buy")]}
BOUND: dict[str, Any] = {"order": "buy", "click": "click", "convert": "share", "weight": 0.1}


def _config(**changed: Any) -> Config:
    data = make_config().model_dump(mode="json", by_alias=True)
    return parse_config(data | {"schema": data["schema"] | THREE} | changed, "test")


def _manifest(config: Config, *, without: tuple[str, ...] = ()) -> Manifest:
    """What a checkpoint says that was trained under a configuration, whose keys of today an older one lacks."""
    declared = config.model_dump(mode="json", by_alias=True)
    kept = {key: value for key, value in declared.items() if key not in without}
    content = {"config": kept, "schema_fingerprint": config.log_schema.fingerprint()}
    return Manifest("checkpoints/2026-01-01/000001/20", content)


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
