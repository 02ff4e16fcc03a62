"""Days of the synthetic logs: reproducible part by part, with histories, in files that are whole."""

import resource

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from synthetic_worlds import FIRST_DAY, HISTORY, SMALL, TASKS, day_of, day_two, shown

from features.errors import ConfigError
from features.synthetic.logs import SCHEMA, SyntheticConfig, make_day, make_part, write_day
from features.synthetic.outcomes import outcomes
from features.synthetic.streams import ColumnStreams, keyed_uniform
from features.synthetic.world import catalogue, user_latents, user_shares, video_latents

__all__ = ["day_two", "shown"]  # fixtures


def forget_worlds() -> None:
    catalogue.cache_clear()
    user_shares.cache_clear()


def test_equal_configs_give_byte_equal_files(tmp_path):
    """Catches any input but config and day: the clock, Python's hash, a global random state, a warm cache."""
    first = write_day(SMALL, day_of(2), tmp_path / "a")
    forget_worlds()
    make_part(SMALL, day_of(4), 1)
    second = write_day(SyntheticConfig(**SMALL.model_dump()), day_of(2), tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_keyed_draws_are_what_they_were():
    """Catches a draw keyed by something that differs between processes or versions, such as Python's hash."""
    assert keyed_uniform(7, "user/taste", np.array([0, 1])).tolist() == [0.8834951000386781, 0.697341033235352]
    assert ColumnStreams(7, FIRST_DAY, 0)["click"].random() == 0.9097532272696446


def test_another_seed_is_another_world(day_two):
    """Catches a seed that does not reach some column."""
    other = make_day(SMALL.model_copy(update={"seed": 12}), day_of(2))
    assert [name for name in SCHEMA.names if other[name].equals(day_two[name])] == []


def test_a_column_more_changes_no_other():
    """Catches columns that share a stream, so that drawing a new one shifts the rest."""
    old = ColumnStreams(3, FIRST_DAY, 0)
    new = ColumnStreams(3, FIRST_DAY, 0)
    new["a_column_added_later"].random(1000)
    assert old["click"].random(5).tolist() == new["click"].random(5).tolist()
    others = [ColumnStreams(3, FIRST_DAY, 0)["share"], ColumnStreams(3, FIRST_DAY, 1)["click"]]
    others += [ColumnStreams(3, day_of(1), 0)["click"], ColumnStreams(4, FIRST_DAY, 0)["click"]]
    draws = {stream.random() for stream in [ColumnStreams(3, FIRST_DAY, 0)["click"], *others]}
    assert len(draws) == 5


@pytest.mark.parametrize(
    "column", ["play_ms", "share", "comment", "cart", "wish", "buy", "follow", "favourite", "rating"]
)
def test_an_outcome_draws_from_its_own_stream(shown, column):
    """Catches an outcome that takes numbers from another one's stream."""
    truth = dict.fromkeys(TASKS, np.full(2000, 0.5))
    truth |= {"true_buy": np.full(2000, 0.25), "true_rating": np.full(2000, 3.0)}
    usual, moved = ColumnStreams(3, FIRST_DAY, 0), ColumnStreams(3, FIRST_DAY, 0)
    moved[column].random()
    before, after = (outcomes(SMALL, shown, truth, streams) for streams in (usual, moved))
    touched = {name for name in before if not before[name].equals(after[name])}
    # Only what is in the cart can be bought.
    assert touched == ({"cart", "buy"} if column == "cart" else {column})


@pytest.mark.parametrize(
    ("setting", "touched"),
    [({"history_length": 5}, HISTORY), ({"valid_view_ms": 3000}, ["history_type", "true_vtr"])],
)
def test_a_setting_changes_only_its_own_columns(day_two, setting, touched):
    """Catches draws whose number depends on another column's values or lengths."""
    other = make_day(SMALL.model_copy(update=setting), day_of(2))
    assert [name for name in SCHEMA.names if not other[name].equals(day_two[name])] == touched


def test_a_part_needs_no_other_part_and_no_earlier_day(day_two):
    """Catches state that is carried from part to part or from day to day."""
    forget_worlds()
    alone = make_part(SMALL, day_of(2), 1)
    assert alone.equals(day_two.slice(1000, 1000).combine_chunks())


def test_rows_are_shared_out_over_the_files_and_kept():
    """Catches rows lost or made twice where the number of rows is no multiple of the number of files."""
    config = SMALL.model_copy(update={"rows_per_day": 1001, "files_per_day": 4})
    assert [make_part(config, FIRST_DAY, part).num_rows for part in range(4)] == [250, 250, 250, 251]


def test_newcomers_change_nobody():
    """Catches latents that depend on the size of the population."""
    larger = SMALL.model_copy(update={"num_users": 900, "num_videos": 900})
    ids = np.arange(200)
    for latents in (user_latents, video_latents):
        few, many = latents(SMALL, ids), latents(larger, np.arange(900)).take(ids)
        assert all(np.array_equal(getattr(few, name), getattr(many, name)) for name in few.__slots__)


def test_times_lie_in_the_day_and_rise(day_two):
    """Catches a time zone, an hour that is not the time's, and files out of order."""
    times = day_two["request_time_ms"].to_numpy()
    stamps = pc.cast(day_two["request_time_ms"], pa.timestamp("ms", "UTC"))
    assert pc.unique(pc.strftime(stamps, "%Y-%m-%d")).to_pylist() == ["2026-03-03"]
    assert pc.hour(stamps).to_pylist() == day_two["hour"].to_pylist()
    assert (np.diff(times) >= 0).all()


def test_files_and_row_groups(tmp_path, day_two):
    """Catches a layout that readers do not expect, and files that hold other rows than make_day."""
    paths = write_day(SMALL, day_of(2), tmp_path / "logs")
    folder = tmp_path / "logs" / "dt=2026-03-03"
    assert paths == [folder / f"part-0000{part}.parquet" for part in range(3)]
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "logs", folder, folder / "_SUCCESS", *paths]
    footers = [pq.read_metadata(path) for path in paths]
    assert [[f.row_group(i).num_rows for i in range(f.num_row_groups)] for f in footers] == [[400, 400, 200]] * 3
    assert pa.concat_tables([pq.ParquetFile(path).read() for path in paths]).equals(day_two)


def test_a_day_that_fails_leaves_nothing(tmp_path):
    """Catches half-made days: the disk refuses the second file's bytes, as a full one would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    config = SMALL.model_copy(update={"rows_per_day": 4000, "files_per_day": 2})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_day(config, FIRST_DAY, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    assert len(write_day(config, FIRST_DAY, tmp_path)) == 2


def test_a_day_that_is_there_is_not_replaced(tmp_path):
    """Catches a synthetic day written over somebody's log."""
    log = tmp_path / "dt=2026-03-01" / "part-00000.parquet"
    log.parent.mkdir()
    log.write_text("somebody's log")
    with pytest.raises(ConfigError, match=r"has \['2026-03-01'\] already"):
        write_day(SMALL, FIRST_DAY, tmp_path)
    assert list(tmp_path.rglob("*")) == [log.parent, log]
    assert log.read_text() == "somebody's log"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_users": 0}, "num_users\n  Input should be greater than or equal to 1"),
        ({"new_videos_per_day": -1}, "new_videos_per_day\n  Input should be greater than or equal to 0"),
        ({"history_lenght": 20}, "history_lenght\n  Extra inputs are not permitted"),
        ({"files_per_day": 4000}, "files_per_day is 4,000 but rows_per_day only 3,000: every file needs"),
    ],
)
def test_a_bad_config_is_refused(setting, message):
    """Catches a value that would fail late, or a misspelt key that would be ignored."""
    with pytest.raises(ValidationError, match=message):
        SyntheticConfig(**(SMALL.model_dump() | setting))


def test_days_and_parts_that_do_not_exist_are_refused():
    """Catches a log from before the world began, and a file beyond the day's last."""
    with pytest.raises(ValueError, match="2026-02-28 lies before first_day 2026-03-01"):
        make_part(SMALL, day_of(-1), 0)
    with pytest.raises(ValueError, match="part 3 of day 2026-03-01: files_per_day is 3"):
        make_part(SMALL, FIRST_DAY, 3)


def test_the_smallest_world_works():
    """Catches empty cells, empty histories and daily news of nobody."""
    one = SyntheticConfig(seed=0, first_day=FIRST_DAY, rows_per_day=1, num_users=1, num_videos=1, num_authors=1)
    table = make_day(one.model_copy(update={"history_length": 0}), day_of(40))
    assert table.schema.equals(SCHEMA)
    assert table["video_id"].to_pylist() == [0]
    assert table["history_video_id"].to_pylist() == [[]]
