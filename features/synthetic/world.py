"""Latent world behind the synthetic logs: users, videos, and the catalogue of a day.

Latent factors are pure functions of (seed, id), so a larger population leaves its members unchanged. A catalogue is a
pure function of (config, day): videos arrive every day, fade, and their categories come in and out of fashion.
"""

from dataclasses import dataclass, fields
from datetime import date
from functools import lru_cache
from typing import Self

import numpy as np
from pydantic import BaseModel, Field, model_validator

from features.errors import ConfigError
from features.synthetic.streams import Floats, Ints, keyed_normal, keyed_normals, keyed_uniform

NUM_CATEGORIES = 12
TASTE_DIM = 6
# A cell is a category and the signs of two axes of a video's own deviation: the finest level of the users' choice.
NUM_CELLS = NUM_CATEGORIES * 4
_DEVIATION = 0.4
_PERIOD_DAYS = 16


class SyntheticConfig(BaseModel, frozen=True, extra="forbid"):
    """Size and seed of a synthetic world; equal configs give byte-equal logs.

    Args:
        seed: Seed of all random numbers.
        first_day: Day 0; no day before it has logs.
        rows_per_day: Number of rows of a day, over all its files.
        num_users: Number of users on day 0.
        num_videos: Number of videos on day 0.
        num_authors: Number of authors, constant over the days.
        new_users_per_day: Number of users who join at midnight of every later day.
        new_videos_per_day: Number of videos first shown at midnight of every later day.
        history_length: Maximum number of views in a row's watch history.
        files_per_day: Number of Parquet files of a day; each covers its share of the day's rows, in order of time.
        row_group_rows: Number of rows of a row group.
        valid_view_ms: Played time from which a play is a valid view, the threshold of VTR.
    """

    seed: int = Field(ge=0)
    first_day: date
    rows_per_day: int = Field(ge=1)
    num_users: int = Field(ge=1)
    num_videos: int = Field(ge=1)
    num_authors: int = Field(ge=1)
    new_users_per_day: int = Field(default=0, ge=0)
    new_videos_per_day: int = Field(default=0, ge=0)
    history_length: int = Field(default=20, ge=0, le=1000)
    files_per_day: int = Field(default=1, ge=1)
    row_group_rows: int = Field(default=65_536, ge=1)
    valid_view_ms: int = Field(default=7000, ge=1)

    @model_validator(mode="after")
    def _every_file_has_rows(self) -> Self:
        if self.files_per_day > self.rows_per_day:
            raise ValueError(
                f"files_per_day is {self.files_per_day:,} but rows_per_day only {self.rows_per_day:,}: "
                "every file needs at least one row"
            )
        return self

    def day_index(self, day: date) -> int:
        """Return the days from `first_day` to `day`; raise ConfigError if it is negative."""
        index = (day - self.first_day).days
        if index < 0:
            begins = f"first_day {self.first_day}, where the synthetic world begins"
            raise ConfigError(f"day {day} lies before {begins}: ask for later days, or set an earlier first_day")
        return index


@dataclass(frozen=True, slots=True, kw_only=True)
class Entities:
    """Columns of one length N about users or videos."""

    def take(self, index: Ints | slice) -> Self:
        """Return the same columns at the given indices."""
        return type(self)(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Users(Entities):
    """Latents of users: a taste of shape (N, TASTE_DIM), and numbers, standard normal if their name has no unit."""

    user_id: Ints
    taste: Floats
    click_bias: Floats
    watch_bias: Floats
    sociability: Floats
    talkativeness: Floats
    spending: Floats
    views_per_day: Floats
    joined_day: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Videos(Entities):
    """Latents of videos: a factor of shape (N, TASTE_DIM), and numbers as in `Users`."""

    video_id: Ints
    author_id: Ints
    category: Ints
    cell: Ints
    factor: Floats
    appeal: Floats
    clickbait: Floats
    quality: Floats
    controversy: Floats
    price: Floats
    duration_ms: Ints
    uploaded_day: Floats
    exposure: Floats


def user_latents(config: SyntheticConfig, user_id: Ints) -> Users:
    """Return the users of the given ids; all but `joined_day` depend on (seed, id) alone."""
    seed = config.seed
    joined = np.ceil(_arrival(user_id, config.num_users, config.new_users_per_day))
    initial = -4.0 - 1000.0 * keyed_uniform(seed, "user/joined", user_id) ** 2
    return Users(
        user_id=user_id,
        taste=keyed_normals(seed, "user/taste", TASTE_DIM, user_id),
        click_bias=keyed_normal(seed, "user/click", user_id),
        watch_bias=keyed_normal(seed, "user/watch", user_id),
        sociability=keyed_normal(seed, "user/social", user_id),
        talkativeness=keyed_normal(seed, "user/talk", user_id),
        spending=keyed_normal(seed, "user/spend", user_id),
        views_per_day=np.clip(np.exp(2.1 + 0.8 * keyed_normal(seed, "user/views", user_id)), 0.5, 200.0),
        joined_day=np.where(joined > 0, joined, initial),
    )


def video_latents(config: SyntheticConfig, video_id: Ints) -> Videos:
    """Return the videos of the given ids; a pure function of (seed, id), number of authors and daily arrivals."""
    seed = config.seed
    author = (keyed_uniform(seed, "video/author", video_id) ** 1.5 * config.num_authors).astype(np.int64)
    own = keyed_uniform(seed, "video/follows_author", video_id) > 0.7
    source = np.where(
        own, keyed_uniform(seed, "video/category", video_id), keyed_uniform(seed, "author/category", author)
    )
    category = (source**1.3 * NUM_CATEGORIES).astype(np.int64)
    # Half of a deviation is the author's, so that an unknown video by a known author can be judged.
    deviation = np.sqrt(0.5) * (
        keyed_normals(seed, "video/deviation", TASTE_DIM, video_id)
        + keyed_normals(seed, "author/deviation", TASTE_DIM, author)
    )
    live = np.ceil(_arrival(video_id, config.num_videos, config.new_videos_per_day))
    age = keyed_uniform(seed, "video/uploaded", video_id)
    duration_s = np.exp(np.log(25.0) + 0.9 * keyed_normal(seed, "video/duration", video_id))
    return Videos(
        video_id=video_id,
        author_id=author,
        category=category,
        cell=category * 4 + 2 * (deviation[:, 0] > 0) + (deviation[:, 1] > 0),
        factor=_category_centres(seed)[category] + _DEVIATION * deviation,
        appeal=keyed_normal(seed, "video/appeal", video_id),
        clickbait=keyed_normal(seed, "video/clickbait", video_id),
        quality=keyed_normal(seed, "video/quality", video_id),
        controversy=keyed_normal(seed, "video/controversy", video_id),
        price=keyed_normal(seed, "video/price", video_id),
        duration_ms=(1000.0 * np.clip(duration_s, 3.0, 1800.0)).astype(np.int64),
        uploaded_day=np.where(live > 0, live - age, -4.0 - 90.0 * age**2),
        # u ** -s of uniform u is Zipf's law of exponent s, without a census of ranks.
        exposure=keyed_uniform(seed, "video/exposure", video_id) ** -0.75,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """Every live video of one day, with the weight of its exposure.

    Args:
        videos: All live videos; row i is video id i.
        order: Video ids sorted by cell, shape (num_videos,).
        cumulative: Running sum of the weights in that order, shape (num_videos,).
        cell_start: Sum of the weights before each cell, and of all of them, shape (NUM_CELLS + 1,).
    """

    videos: Videos
    order: Ints
    cumulative: Floats
    cell_start: Floats

    def draw(self, preference: Floats, row: Ints, choose_cell: Floats, choose_video: Floats) -> Ints:
        """Draw videos with probability proportional to weight times the preference for the video's cell.

        Args:
            preference: Positive factors, shape (rows, NUM_CELLS).
            row: Row of `preference` for each draw, in rising order, shape (N,).
            choose_cell: Uniform numbers, shape (N,).
            choose_video: Uniform numbers, shape (N,).

        Returns:
            Video ids, shape (N,).
        """
        share = np.cumsum(preference * np.diff(self.cell_start), axis=1)
        share /= share[:, -1:]
        # One sorted search serves all rows: row r's shares are moved into (r, r + 1].
        share += np.arange(len(share))[:, None]
        cell = np.searchsorted(share.ravel(), row + choose_cell) - row * NUM_CELLS
        cell = np.clip(cell, 0, NUM_CELLS - 1)
        start, end = self.cell_start[cell], self.cell_start[cell + 1]
        place = np.searchsorted(self.cumulative, start + choose_video * (end - start), side="right")
        return self.order[np.minimum(place, len(self.order) - 1)]


@lru_cache(maxsize=8)
def catalogue(config: SyntheticConfig, day_index: int) -> Catalogue:
    """Return the catalogue of a day; days before 0 show the videos of day 0 in their earlier fashions."""
    day = max(day_index, 0)
    num_videos = config.num_videos + config.new_videos_per_day * day
    videos = _videos_of_period(config, day // _PERIOD_DAYS).take(slice(num_videos))
    age_days = day_index - videos.uploaded_day
    # New videos are pushed for a day or two, then fade to a quarter over weeks.
    freshness = (0.25 + 0.75 * np.exp(-age_days / 20.0)) * (1.0 + 3.0 * np.exp(-age_days / 1.5))
    weight = videos.exposure * freshness * np.exp(0.5 * fashion(config, "exposure", day_index)[videos.category])
    order = np.argsort(videos.cell, kind="stable")
    cumulative = np.cumsum(weight[order])
    counts = np.cumsum(np.bincount(videos.cell, minlength=NUM_CELLS))
    return Catalogue(
        videos=videos,
        order=order,
        cumulative=cumulative,
        cell_start=np.concatenate([[0.0], np.where(counts > 0, cumulative[counts - 1], 0.0)]),
    )


@lru_cache(maxsize=2)
def user_shares(config: SyntheticConfig, day_index: int) -> Floats:
    """Return the running share of the day's rows of users 0, 1, ..., shape (num_users on the day,)."""
    ids = np.arange(config.num_users + config.new_users_per_day * day_index)
    shares = np.cumsum(user_latents(config, ids).views_per_day)
    return shares / shares[-1]


def fashion(config: SyntheticConfig, name: str, day_index: int) -> Floats:
    """Return each category's fashion on a day, in (-1, 1), a wave of 12 to 36 days; shape (NUM_CATEGORIES,)."""
    ids = np.arange(NUM_CATEGORIES)
    period_days = 12.0 + 24.0 * keyed_uniform(config.seed, f"fashion/{name}/period", ids)
    phase = keyed_uniform(config.seed, f"fashion/{name}/phase", ids)
    return np.sin(2.0 * np.pi * (day_index / period_days + phase))


def cell_affinity(config: SyntheticConfig, taste: Floats) -> Floats:
    """Return the fit of each cell's typical video to each taste, about standard normal; shape (N, NUM_CELLS)."""
    cell = np.arange(NUM_CELLS)
    centre = _category_centres(config.seed)[cell // 4].copy()
    centre[:, 0] += _DEVIATION * 0.8 * (2 * (cell // 2 % 2) - 1)
    centre[:, 1] += _DEVIATION * 0.8 * (2 * (cell % 2) - 1)
    # einsum instead of BLAS, whose sums depend on the machine, the threads and the number of rows.
    return np.einsum("nd,cd->nc", taste, centre) / np.sqrt(TASTE_DIM)


def _category_centres(seed: int) -> Floats:
    return keyed_normals(seed, "category/centre", TASTE_DIM, np.arange(NUM_CATEGORIES))


def _arrival(ids: Ints, num_initial: int, new_per_day: int) -> Floats:
    """Return each id's day of arrival, a fraction below the whole day; not positive for ids of day 0."""
    return (ids - num_initial + 1) / max(new_per_day, 1)


@lru_cache(maxsize=2)
def _videos_of_period(config: SyntheticConfig, period: int) -> Videos:
    """Return all videos live by the end of a period, in order of id: the catalogues of its days are views of them."""
    last_day = _PERIOD_DAYS * (period + 1) - 1
    return video_latents(config, np.arange(config.num_videos + config.new_videos_per_day * last_day))
