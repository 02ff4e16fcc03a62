"""Platform counters of users, videos and authors: the dense features of a synthetic log line.

A counter is a noisy observation of its latents, constant within a day and a pure function of (seed, id, day).
"""

import numpy as np
import pyarrow as pa

from features.synthetic.streams import Floats, Ints, keyed_normal, keyed_uniform
from features.synthetic.world import SyntheticConfig, Users, Videos


def user_counters(config: SyntheticConfig, users: Users, day_index: int, time_days: Floats) -> dict[str, pa.Array]:
    """Return six features of the rows' users.

    Args:
        config: The configuration of the world.
        users: The rows' users, length N.
        day_index: Days since the world's first day.
        time_days: Time of each row's request, in days since the world's first day, shape (N,).

    Returns:
        Columns of N rows; user_age_days is null where the sign-up date is unknown, user_watch_ms_7d and
        user_clicks_7d on a user's first day.
    """
    noise = _Noise(config.seed, users.user_id, day_index)
    seen_days = np.clip(day_index - users.joined_day, 0.0, None)
    views_7d = users.views_per_day * np.minimum(seen_days, 7.0)
    active = 1.0 - np.exp(-users.views_per_day / 4.0)
    unknown = keyed_uniform(config.seed, "user/sign_up_unknown", users.user_id) < 0.08
    first_day = seen_days < 1.0
    clicks = 0.25 * np.exp(0.45 * users.click_bias) * views_7d
    watch_ms = 9000.0 * np.exp(0.4 * users.watch_bias + 0.8 * noise("user_watch_ms_7d")) * views_7d
    shares = 0.03 * np.exp(0.7 * users.sociability) * users.views_per_day * np.minimum(seen_days, 30.0)
    follows = np.exp(2.5 + 0.6 * users.sociability + 1.2 * keyed_normal(config.seed, "user/follows", users.user_id))
    return {
        "user_age_days": pa.array((time_days - users.joined_day).astype(np.float32), mask=unknown),
        "user_active_days_30d": _whole(active * np.minimum(seen_days, 30.0)),
        "user_watch_ms_7d": _whole(watch_ms, mask=first_day),
        "user_clicks_7d": _whole(noise.count("user_clicks_7d", clicks), mask=first_day),
        "user_shares_30d": _whole(noise.count("user_shares_30d", shares)),
        "user_follows": _whole(follows),
    }


def video_counters(config: SyntheticConfig, videos: Videos, day_index: int, time_days: Floats) -> dict[str, pa.Array]:
    """Return seven features of the rows' videos and their authors, duration_ms first.

    Args:
        config: The configuration of the world.
        videos: The rows' videos, length N.
        day_index: Days since the world's first day.
        time_days: Time of each row's request, in days since the world's first day, shape (N,).

    Returns:
        Columns of N rows; the two rates are null for videos in their first day on show, author_followers for authors
        who hide it.
    """
    seed = config.seed
    noise = _Noise(seed, videos.video_id, day_index)
    shown_days = day_index - np.ceil(videos.uploaded_day)
    new = shown_days < 1.0
    plays = 60.0 * videos.exposure * np.exp(0.3 * noise("video_plays_7d")) * np.minimum(shown_days, 7.0)
    like_rate = 0.03 * np.exp(0.5 * videos.quality - 0.2 * videos.clickbait + 0.3 * noise("video_like_rate_7d"))
    comments = 0.01 * np.exp(0.8 * videos.controversy) * plays
    followers = np.exp(6.0 + 2.0 * keyed_normal(seed, "author/followers", videos.author_id))
    hidden = keyed_uniform(seed, "author/hides_followers", videos.author_id) < 0.05
    completion = 0.4 * np.exp(0.15 * videos.quality - 0.2 * videos.clickbait)
    completion *= np.exp(0.1 * noise("video_completion_rate_7d")) * (videos.duration_ms / 25_000.0) ** -0.2
    return {
        "duration_ms": pa.array(videos.duration_ms),
        "video_age_hours": pa.array((24.0 * (time_days - videos.uploaded_day)).astype(np.float32)),
        "video_plays_7d": _whole(plays),
        "video_like_rate_7d": pa.array(like_rate.astype(np.float32), mask=new),
        "video_completion_rate_7d": pa.array(np.minimum(completion, 1.0).astype(np.float32), mask=new),
        "video_comments_7d": _whole(noise.count("video_comments_7d", comments)),
        "author_followers": _whole(followers, mask=hidden),
    }


class _Noise:
    """Daily measurement noise of the counters of one kind of entity."""

    def __init__(self, seed: int, ids: Ints, day_index: int) -> None:
        self._seed, self._ids, self._day = seed, ids, np.full_like(ids, day_index)

    def __call__(self, counter: str) -> Floats:
        """Return standard normal numbers, shape (N,)."""
        return keyed_normal(self._seed, f"counter/{counter}", self._ids, self._day)

    def count(self, counter: str, mean: Floats) -> Floats:
        """Return counts around `mean` with roughly Poisson's variance, by its square-root transform; shape (N,)."""
        return np.clip(np.sqrt(mean) + 0.5 * self(counter), 0.0, None) ** 2


def _whole(values: Floats, mask: np.ndarray | None = None) -> pa.Array:
    return pa.array(np.round(values).astype(np.int64), mask=mask)
