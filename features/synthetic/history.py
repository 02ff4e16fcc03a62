"""Watch history on a synthetic log line: the user's recent views, drawn by the user's taste.

A user views videos at a steady personal pace. View k of a user is a pure function of (config, user, k), so histories
of one user at different times are windows on one sequence, within a day and across days.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.synthetic.outcomes import SCENES, watch_affinity, watch_interest, watch_law
from features.synthetic.streams import Floats, Ints, keyed_uniform
from features.synthetic.world import SyntheticConfig, Users, catalogue, cell_affinity

HISTORY_TYPES = ("skip", "short", "long", "complete")
# Weight of taste in the choice of videos that users browse on their own.
BROWSING_CHOICE = 1.6
_WINDOW_DAYS = 3.0
_NULL_SHARE = 0.005


def history_columns(config: SyntheticConfig, users: Users, day_index: int, time_days: Floats) -> dict[str, pa.Array]:
    """Return the history of each row: at most `history_length` views of the last three days, most recent last.

    Args:
        config: The configuration of the world.
        users: The rows' users, length N.
        day_index: Days since the world's first day.
        time_days: Time of each row's request, in days since the world's first day, shape (N,).

    Returns:
        Five list columns of N rows, of equal lengths in a row: history_video_id (sometimes null),
        history_author_id, history_type, history_scene, and history_age_s (seconds from the view to the request).
    """
    first_view, length = _windows(config, users, time_days)
    offsets = np.concatenate([[0], np.cumsum(length)])
    row = np.repeat(np.arange(len(length)), length)
    view = np.arange(offsets[-1]) + np.repeat(first_view - offsets[:-1], length)
    user_id = users.user_id[row]

    def uniform(name: str) -> Floats:
        return keyed_uniform(config.seed, f"history/{name}", user_id, view)

    viewed_day = (view + uniform("moment")) / users.views_per_day[row]
    video_id = _chosen_videos(config, users.taste, row, viewed_day, uniform)
    values = {
        "history_video_id": pa.array(video_id, mask=uniform("null") < _NULL_SHARE),
        "history_author_id": pa.array(catalogue(config, day_index).videos.author_id[video_id]),
        "history_type": pa.array(_types(config, users, day_index, row, video_id, uniform)),
        "history_scene": pa.array((uniform("scene") * len(SCENES)).astype(np.int8)),
        "history_age_s": pa.array(((time_days[row] - viewed_day) * 86_400.0).astype(np.int32)),
    }
    starts = pa.array(offsets, pa.int32())
    return {name: pa.ListArray.from_arrays(starts, column) for name, column in values.items()}


def _windows(config: SyntheticConfig, users: Users, time_days: Floats) -> tuple[Ints, Ints]:
    """Return the first view of each row's window and the number of its views, all after the user joined."""
    since = np.maximum(users.joined_day, time_days - _WINDOW_DAYS)
    end = np.floor(time_days * users.views_per_day).astype(np.int64)
    start = np.ceil(since * users.views_per_day).astype(np.int64)
    start = np.clip(start, end - config.history_length, end)
    return start, end - start


def _chosen_videos(
    config: SyntheticConfig, taste: Floats, row: Ints, viewed_day: Floats, uniform: Callable[[str], Floats]
) -> Ints:
    """Draw each view's video, by the user's taste, from the catalogue of the view's own day; shape (N,)."""
    preference = np.exp(BROWSING_CHOICE * cell_affinity(config, taste))
    cell, video = uniform("cell"), uniform("video")
    day = np.floor(viewed_day).astype(np.int64)
    chosen = np.zeros(len(row), np.int64)
    for each in np.unique(day).tolist():
        there = day == each
        chosen[there] = catalogue(config, each).draw(preference, row[there], cell[there], video[there])
    return chosen


def _types(
    config: SyntheticConfig,
    users: Users,
    day_index: int,
    row: Ints,
    video_id: Ints,
    uniform: Callable[[str], Floats],
) -> NDArray[np.int8]:
    """Draw each view's index into HISTORY_TYPES from the watch law of the log's own plays; shape (N,)."""
    videos = catalogue(config, day_index).videos
    duration_ms = videos.duration_ms[video_id]
    affinity = watch_affinity(users.taste[row], videos.factor[video_id])
    interest = watch_interest(affinity, users.watch_bias[row], videos.quality[video_id], videos.clickbait[video_id])
    played_ms = watch_law(interest, duration_ms, clicked=True).draw(uniform("stays"), uniform("amount"))
    skipped = 10 * played_ms < duration_ms
    long = np.where(played_ms >= config.valid_view_ms, 2, 1)
    return np.where(played_ms >= duration_ms, 3, np.where(skipped, 0, long)).astype(np.int8)
