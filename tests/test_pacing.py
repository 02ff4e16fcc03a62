"""The pace of Ray Data's loop: that Ray asks for it, and that a turn is never shorter than it may be."""

from collections.abc import Callable

import pytest
from small_streams import DAYS

from features.encoding import Encoder
from pipeline.config.ingest import IngestConfig
from pipeline.ingest import pacing
from pipeline.ingest.pacing import PacedLoop
from pipeline.ingest.parts import whole_days
from pipeline.ingest.plan import RunPlan, StreamStart
from pipeline.ingest.units import list_days
from pipeline.storage.files import Storage


def test_a_turn_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a loop that turns freely, and one that also waits where a turn was long enough."""
    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(round(seconds, 6))
        now[0] += seconds

    monkeypatch.setattr(pacing.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(pacing.time, "sleep", sleep)
    loop = PacedLoop()
    for work in (0.0, 0.0, 0.005, 0.05):
        now[0] += work
        loop.on_execution_step(None)
    assert slept == [0.0, 0.02, 0.015, 0.0]


@pytest.mark.ray
def test_ray_paces_a_stream(
    write_log: Callable[..., Storage], tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    """Catches a release of Ray that no longer calls what a stream's context names."""
    turns = []
    monkeypatch.setattr(PacedLoop, "on_execution_step", lambda self, executor: turns.append(executor))
    logs = write_log([[[4, 4]]])
    parts = whole_days(list_days(logs, DAYS[:1], 4))
    plan = RunPlan(logs, parts, 1, tiny_encoder, IngestConfig(), 1, (StreamStart,))
    assert sum(1 for _ in plan.begin_stream(1).iter_batches(batch_size=1)) > 0
    assert turns
