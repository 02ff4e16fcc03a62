"""The synthetic logs: honest about their own probabilities, and with the biases they claim to plant."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from synthetic_worlds import HISTORY, SMALL, TASKS, day_of, day_two, shown

from features.synthetic.logs import make_day
from features.synthetic.outcomes import AUTOPLAY_STARTS, WatchLaw, true_columns
from features.synthetic.world import catalogue, cell_affinity, user_latents, video_latents

__all__ = ["day_two", "shown"]  # fixtures
FIRST_DAY_MS = 1_772_323_200_000


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
