"""The synthetic logs: reproducible, honest about their own probabilities, and with the biases they claim to plant."""

import resource
from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from features.errors import ConfigError
from features.synthetic.logs import SCHEMA, SyntheticConfig, make_day, make_part, write_day
from features.synthetic.outcomes import AUTOPLAY_STARTS, SCENES, Impressions, WatchLaw, outcomes, true_columns
from features.synthetic.streams import ColumnStreams, keyed_uniform
from features.synthetic.world import catalogue, cell_affinity, user_latents, user_shares, video_latents

FIRST_DAY = date(2026, 3, 1)
FIRST_DAY_MS = 1_772_323_200_000
SMALL = SyntheticConfig(
    seed=11,
    first_day=FIRST_DAY,
    rows_per_day=3000,
    num_users=200,
    num_videos=300,
    num_authors=40,
    new_users_per_day=20,
    new_videos_per_day=15,
    history_length=8,
    files_per_day=3,
    row_group_rows=400,
)
HISTORY = [name for name in SCHEMA.names if name.startswith("history_")]
# Label and space of each truth column; "valid" and "ratio" are made of play_ms.
TASKS = {
    "true_ctr": ("click", None),
    "true_vtr": ("valid", None),
    "true_vcr": ("ratio", "played"),
    "true_shr": ("share", "played"),
    "true_cmr": ("comment", "played"),
    "true_cart": ("cart", "click"),
    "true_wish": ("wish", "click"),
    "true_buy": ("buy", "click"),
    "true_follow": ("follow", "played"),
    "true_favourite": ("favourite", "played"),
    "true_rating": ("rating", "rated"),
}


def day_of(index: int) -> date:
    return FIRST_DAY + timedelta(days=index)


@pytest.fixture(scope="module")
def day_two() -> pa.Table:
    return make_day(SMALL, day_of(2))


@pytest.fixture(scope="module")
def big() -> dict[str, np.ndarray]:
    """200,000 rows as numpy columns without the histories, with the derived labels."""
    config = SMALL.model_copy(update={"rows_per_day": 200_000, "num_users": 3000, "num_videos": 2000})
    table = make_day(config, day_of(3)).drop_columns(HISTORY)
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    columns["valid"] = np.nan_to_num(columns["play_ms"]) >= config.valid_view_ms
    columns["ratio"] = np.minimum(columns["play_ms"] / columns["duration_ms"], 1.0)
    columns["rated"] = ~np.isnan(columns["rating"])
    return columns


@pytest.fixture(scope="module")
def shown() -> Impressions:
    """2,000 pairs of a user and a video in the feed, in the first slot of a phone."""
    ids = np.arange(2000)
    zeros = np.zeros_like(ids)
    return Impressions(
        users=user_latents(SMALL, ids % 200),
        videos=video_latents(SMALL, ids % 299),
        day_index=0,
        hour=zeros + 12,
        scene=zeros + SCENES.index("feed_click"),
        device=zeros,
        slot=zeros,
    )


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


def misfit(label: np.ndarray, truth: np.ndarray, by: np.ndarray) -> float:
    """Sum of the squared z-scores of mean(label - truth) over ten buckets of rows; 10 on average if truth is true."""
    total = 0.0
    binary = np.isin(label, [0.0, 1.0]).all()
    for rows in np.array_split(np.argsort(by, kind="stable"), 10):
        gap = label[rows] - truth[rows]
        variance = truth[rows] * (1.0 - truth[rows]) if binary else gap**2
        total += gap.sum() ** 2 / variance.sum()
    return total


@pytest.mark.parametrize("task", TASKS)
def test_truth_is_calibrated_in_every_bucket(big, task):
    """Catches an outcome drawn from another law than the truth column says, anywhere on its range."""
    label, space = TASKS[task]
    rows = slice(None) if space is None else big[space].astype(bool)
    labels, truth = big[label][rows].astype(np.float64), big[task][rows].astype(np.float64)
    scene = np.unique(big["scene"][rows], return_inverse=True)[1]
    for by in (truth, big["duration_ms"][rows], scene, big["slot"][rows], big["user_clicks_7d"][rows]):
        # Chance passes 29.6 once in a thousand times; the seed is fixed.
        assert misfit(labels, truth, by) < 29.6
    assert misfit(labels, 1.25 * truth, truth) > 29.6, "the test would not notice a quarter too much"


def test_watch_law_by_hand():
    """Catches a slip in the closed forms, and rounding to whole milliseconds that moves them."""
    law = WatchLaw(complete=np.array([0.25]), shape=np.array([1.0]), duration_ms=np.array([10]))
    assert law.mean_ratio() == pytest.approx(0.25 + 0.75 * 0.55)
    assert law.reaches(4) == pytest.approx(0.25 + 0.75 * 0.7)
    assert law.reaches(10) == pytest.approx(0.25 + 0.75 * 0.1)
    assert law.reaches(11) == pytest.approx(0.25 * 0.3)
    assert law.reaches(17) == pytest.approx(0.25 * 0.3 * np.exp(-1.0))
    stays, amount = 1.0 - np.random.default_rng(0).random((2, 400_000))
    played = law.draw(stays, amount)
    assert np.minimum(played / 10, 1.0).mean() == pytest.approx(law.mean_ratio()[0], abs=0.002)
    for threshold in (1, 4, 10, 11, 17):
        assert (played >= threshold).mean() == pytest.approx(law.reaches(threshold)[0], abs=0.003)


def test_a_video_starts_by_itself_on_wifi_only(big):
    """Catches plays without a click in the click scenes, and a played time without a play."""
    played, clicked, wifi = big["played"] == 1, big["click"] == 1, big["scene"] == "wifi_autoplay"
    assert played[clicked].all()
    assert not played[~clicked & ~wifi].any()
    assert played[~clicked & wifi].mean() == pytest.approx(AUTOPLAY_STARTS, abs=0.01)
    assert np.array_equal(~np.isnan(big["play_ms"]), played)
    assert played[wifi].mean() > 2.5 * played[~wifi].mean()


def test_labels_follow_one_another(big):
    """Catches a purchase of what was never put into the cart, and reactions to what was never played."""
    assert (big["buy"] <= big["cart"]).all()
    assert (big["cart"] <= big["click"]).all()
    assert (big["wish"] <= big["click"]).all()
    assert all((big[label] <= big["played"]).all() for label in ("share", "comment", "follow", "favourite"))
    assert np.isin(big["rating"][big["rated"]], [1, 2, 3, 4, 5]).all()
    assert big["played"][big["rated"]].all()


def test_slot_and_device_move_clicks_and_nothing_else(big, shown):
    """Catches a bias that leaks into what happens after the click, or that is not there."""
    first = true_columns(SMALL, shown)
    for elsewhere in (replace(shown, slot=shown.slot + 3), replace(shown, device=shown.device + 3)):
        there = true_columns(SMALL, elsewhere)
        assert (there["true_ctr"] < first["true_ctr"]).all()
        assert there["true_ctr"].mean() < 0.85 * first["true_ctr"].mean()
        for task in TASKS.keys() - {"true_ctr", "true_vtr"}:
            assert np.allclose(there[task], first[task], rtol=1e-12), task
    rates = [big["click"][big["slot"] == slot].mean() for slot in (0, 3, 6, 9)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 2 * rates[-1]


def test_clickbait_sells_clicks_for_satisfaction(shown):
    """Catches tasks that all agree, on which no seesaw could show."""
    plain = true_columns(SMALL, shown)
    bait = true_columns(SMALL, replace(shown, videos=replace(shown.videos, clickbait=shown.videos.clickbait + 1)))
    assert (bait["true_ctr"] > plain["true_ctr"]).all()
    for task in ("true_vcr", "true_rating", "true_shr"):
        assert (bait[task] < plain[task]).all(), task


def test_length_lowers_completion_and_raises_valid_views(shown):
    """Catches a watch law in which completion and valid views move together."""
    videos = replace(shown.videos, duration_ms=np.maximum(shown.videos.duration_ms, 10_000))
    short = true_columns(SMALL, replace(shown, videos=videos))
    long = true_columns(SMALL, replace(shown, videos=replace(videos, duration_ms=3 * videos.duration_ms)))
    assert (long["true_vcr"] < short["true_vcr"]).all()
    assert long["true_vtr"].mean() > 1.1 * short["true_vtr"].mean()


def test_taste_drifts_smoothly(shown):
    """Catches a world that stands still, and one that jumps from day to day."""

    def moved(day_index: int) -> float:
        now = true_columns(SMALL, replace(shown, day_index=day_index))["true_ctr"]
        return float(np.abs(now - true_columns(SMALL, shown)["true_ctr"]).mean())

    def shares(day_index: int) -> np.ndarray:
        weights = np.diff(catalogue(SMALL, day_index).cell_start).reshape(-1, 4).sum(axis=1)
        return weights / weights.sum()

    assert 0 < moved(1) < 0.5 * moved(4)
    assert moved(6) > 0.02
    assert np.abs(shares(1) - shares(0)).sum() < np.abs(shares(8) - shares(0)).sum()


def test_new_users_and_videos_come_every_day_and_not_before():
    """Catches an id shown, or remembered in a history, before its time, and a day without news."""
    for index in range(4):
        table = make_day(SMALL, day_of(index))
        for column, initial, per_day in (("video_id", 300, 15), ("user_id", 200, 20)):
            ids = table[column].to_numpy()
            assert ids.max() < initial + per_day * index
            assert index == 0 or (ids >= initial + per_day * (index - 1)).any()
        first_new = 300 + 15 * (index - 1) if index else 300
        new = pc.greater_equal(table["video_id"], first_new)
        assert table["video_like_rate_7d"].is_null().equals(new)
        assert pc.min(table["video_age_hours"]).as_py() >= 0


def test_exposure_is_uneven_and_favours_the_new(big):
    """Catches videos shown all alike, on which popularity is no baseline, and new ones too rare to be learnt."""
    counts = np.sort(np.bincount(big["video_id"], minlength=2045))[::-1]
    assert 0.1 < counts[:20].sum() / counts.sum() < 0.5
    new = big["video_id"] >= 2000 + 2 * 15
    assert new.mean() > 2 * 15 / 2045


def test_rates_are_those_of_a_real_log(big):
    """Catches a constant that was changed for one task and moved another out of its range."""
    wanted = {"click": 0.2, "valid": 0.25, "share": 0.015, "comment": 0.01, "cart": 0.02, "wish": 0.01, "buy": 0.004}
    wanted |= {"follow": 0.01, "favourite": 0.02, "rated": 0.03 * big["played"].mean()}
    for label, rate in wanted.items():
        assert big[label].mean() == pytest.approx(rate, rel=0.4), label
    assert np.nanmean(big["ratio"]) == pytest.approx(0.4, abs=0.05)
    assert np.nanvar(big["ratio"]) == pytest.approx(0.1, abs=0.03)


def test_history_columns_go_together(day_two):
    """Catches lists of unequal length, views in the wrong order, from the future, or of videos not yet there."""
    lengths = [pc.list_value_length(day_two[name]).to_numpy() for name in HISTORY]
    assert all(np.array_equal(lengths[0], other) for other in lengths[1:])
    assert lengths[0].max() == 8
    assert lengths[0].min() == 0
    row = np.repeat(np.arange(len(day_two)), lengths[0])
    ages = pc.list_flatten(day_two["history_age_s"]).to_numpy()
    assert ages.min() >= 0
    assert ages.max() <= 3 * 86_400
    assert (np.diff(ages)[np.diff(row) == 0] <= 0).all()
    videos = pc.list_flatten(day_two["history_video_id"])
    assert 0.002 < videos.null_count / len(videos) < 0.01
    ids = videos.fill_null(0).to_numpy()
    viewed_day = (day_two["request_time_ms"].to_numpy()[row] - FIRST_DAY_MS) / 86_400_000 - ages / 86_400
    assert (video_latents(SMALL, ids).uploaded_day < viewed_day).all()
    joined = user_latents(SMALL, day_two["user_id"].to_numpy()[row]).joined_day
    assert (viewed_day >= joined).all()


def test_history_of_a_user_goes_on(day_two):
    """Catches histories that are drawn anew on every row or day: they must be windows on one sequence of views."""
    table = pa.concat_tables([day_two, make_day(SMALL, day_of(3))])
    seen: dict[tuple[int, int], int | None] = {}
    repeated = 0
    columns = ("user_id", "request_time_ms", "history_age_s", "history_video_id")
    for user, time_ms, ages, videos in zip(*(table[name].to_pylist() for name in columns), strict=True):
        for age, video in zip(ages, videos, strict=True):
            # Times and ages are cut to whole seconds, so that a view may be a second off and count as another one.
            moment = (user, time_ms // 1000 - age)
            repeated += moment in seen and seen[moment] == video
            seen[moment] = video
    assert repeated > 0.6 * len(seen)


def test_history_shows_the_taste(day_two):
    """Catches histories that tell nothing about the user."""
    videos = day_two["history_video_id"].to_pylist()
    cells = catalogue(SMALL, 2).videos.cell
    affinity = cell_affinity(SMALL, user_latents(SMALL, day_two["user_id"].to_numpy()).taste)
    watched = [affinity[row, cells[v]] for row, ids in enumerate(videos) for v in ids if v is not None]
    offered = affinity[np.arange(len(affinity)), cells[day_two["video_id"].to_numpy()]]
    assert np.mean(watched) > np.mean(offered) + 0.3


def test_files_and_row_groups(tmp_path, day_two):
    """Catches a layout that readers do not expect, and files that hold other rows than make_day."""
    paths = write_day(SMALL, day_of(2), tmp_path / "logs")
    folder = tmp_path / "logs" / "dt=2026-03-03"
    assert paths == [folder / f"part-0000{part}.parquet" for part in range(3)]
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "logs", folder, *paths]
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
