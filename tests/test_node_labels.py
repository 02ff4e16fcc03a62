"""Labels of Ray nodes: data tasks run on the nodes that the configuration selects, and a label that no node has."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray.data import DataContext
from small_runs import DAYS, logs, make_config, without_statistics

from features.encoding import Encoder
from features.errors import ConfigError
from pipeline.cluster.session import ray_session
from pipeline.config.ingest import IngestConfig
from pipeline.ingest.parts import whole_days
from pipeline.ingest.plan import RunPlan, StreamStart
from pipeline.ingest.units import DayLog, Unit, check_days
from pipeline.log_passes.reduce_units import reduce_units
from pipeline.storage.files import Storage

__all__ = ["logs"]  # fixtures


@pytest.mark.parametrize("value", ["data", "!data", "in(a, b)", "!in(a,b)", "a.b_c-d"])
def test_selectors_of_ray_are_accepted(tmp_path: Path, value: str) -> None:
    """Catches a check that refuses a selector which Ray knows."""
    config = make_config(tmp_path, tmp_path, ingest={"label_selector": {"group": value}})
    assert config.ingest.label_selector == {"group": value}
    assert ray._private.label_utils.validate_label_selector({"group": value}) is None  # Ray's own verdict


@pytest.mark.parametrize(
    ("key", "value"), [("gr oup", "data"), ("group", "data,"), ("group", "of(a)"), ("-group", "a")]
)
def test_a_selector_that_ray_refuses_is_refused_before_a_cluster_is_asked(tmp_path: Path, key: str, value: str) -> None:
    """Catches a selector that ends a run only when the first data task or worker is asked for."""
    with pytest.raises(ConfigError, match=r"workers\.label_selector: label .*expected"):
        make_config(tmp_path, tmp_path, workers={"label_selector": {key: value}})
    assert ray._private.label_utils.validate_label_selector({key: value})  # the negative control: Ray refuses it too


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Gives up a pass whose tasks find no node for some seconds."""
    context = DataContext.get_current()
    before, context.execution_no_progress_timeout_s = context.execution_no_progress_timeout_s, 4
    with pytest.raises(Exception, match="progress"):
        yield
    context.execution_no_progress_timeout_s = before


def _node_of(unit: Unit) -> set[str]:
    return {ray.get_runtime_context().get_node_id()}


def _nodes(days: list[DayLog], selector: Mapping[str, str]) -> set[str]:
    """Return the nodes on which a pass works."""
    ingest = IngestConfig(label_selector=dict(selector))
    found = [part.merged for part in reduce_units(days, _node_of, set.union, ingest)]
    return set().union(*(nodes for nodes in found if nodes))


def _read(logs: Path, root: Path, selector: Mapping[str, str]) -> int:
    """Read a day as a training does, and return the number of blocks."""
    config = without_statistics(make_config(logs, root, ingest={"label_selector": dict(selector)}))
    encoder = Encoder(config.log_schema, None)
    days = check_days(Storage(config.logs.path), DAYS[:1], 200, config.log_schema, encoder.columns)
    plan = RunPlan(Storage(str(logs)), whole_days(days), 1, encoder, config.ingest, config.seed, (StreamStart,))
    return sum(1 for _ in replace(plan, block_rows=400).begin_stream(1).iter_internal_ref_bundles())


@pytest.mark.ray
def test_data_tasks_run_where_the_selector_says(logs: Path, tmp_path: Path, ray_cluster: None) -> None:
    """Catches a selector that does not reach the data tasks, of a training or of a pass: they would fill GPU nodes."""
    here = ray.nodes()[0]["NodeID"]
    config = without_statistics(make_config(logs, tmp_path))
    days = check_days(Storage(str(logs)), DAYS[:1], 200, config.log_schema, Encoder(config.log_schema, None).columns)
    ray.cloudpickle.register_pickle_by_value(__import__(__name__))  # Ray's workers cannot import this file
    selected, others = {"ray.io/node-id": here}, {"ray.io/node-id": f"!{here}"}
    assert _nodes(days, selected) == {here}
    assert _read(logs, tmp_path / "selected", selected) > 1
    with _impatient():
        _nodes(days, others)
    with _impatient():
        _read(logs, tmp_path / "others", others)


@pytest.mark.ray
def test_a_label_that_no_node_has_is_said(
    logs: Path, tmp_path: Path, ray_cluster: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a misspelt label that leaves a run waiting without a word."""
    here = ray.nodes()[0]["NodeID"]
    selectors = {"ray.io/node-id": here, "group": "dato", "zone": "!a"}
    with (
        caplog.at_level(logging.WARNING),
        ray_session(make_config(logs, tmp_path, workers={"label_selector": selectors})),
    ):
        pass
    assert "no node has the label group: dato now" in caplog.text
    assert "zone" not in caplog.text
