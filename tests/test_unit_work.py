"""Work of data tasks on a unit beside encoding; a unit that cannot be read gives its reason, or the error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from features.encoding import Encoder
from features.errors import DataError
from features.profile import DayProfile
from pipeline.ingest.units import list_days
from pipeline.log_passes.unit_work import ProfileUnit
from pipeline.storage.files import Storage


def _damage(logs: Storage, file: str) -> None:
    path = Path(logs.path(file))
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("pass_over_bad", [False, True])
def test_a_unit_that_cannot_be_profiled(
    pass_over_bad: bool, write_log: Callable[..., Storage], tiny_encoder: Encoder
) -> None:
    """Catches a unit that preflight passes over in silence, or that ends it although training would quarantine it."""
    logs = write_log([[[20], [20]]])
    (day,) = list_days(logs, ["2026-03-01"], 1000)
    _damage(logs, "dt=2026-03-01/part-1.parquet")
    profile: Any = ProfileUnit(logs, tiny_encoder.schema, tuple(tiny_encoder.schema.columns()), pass_over_bad)
    good, bad = day.units
    found = profile(good)
    assert isinstance(found, DayProfile)
    assert found.rows == 20
    if pass_over_bad:
        assert "part-1.parquet, row group 0" in profile(bad)
    else:
        with pytest.raises(DataError, match=r"part-1\.parquet, row group 0"):
            profile(bad)
