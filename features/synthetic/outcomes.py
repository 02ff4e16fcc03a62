"""Outcomes of a shown video, and their exact probabilities: the planted laws of every task.

Every law is a function of the latents and of the context alone, and every outcome is drawn from its law. So the truth
columns are exact conditional probabilities (means, for completion and rating) on every row: given a play for share,
comment, follow, favourite, rating and completion, given a click for cart, wish and buy.

Planted conflicts: clickbait raises clicks, lowers watching and ratings; length lowers completion, raises valid views;
two axes of taste pull clicks and watching apart; funny categories are shared, controversial ones commented on; a high
price is wished for and not bought. Slot and device move clicks and nothing after them.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.synthetic.streams import ColumnStreams, Floats, Ints
from features.synthetic.world import NUM_CATEGORIES, TASTE_DIM, SyntheticConfig, Users, Videos, fashion

SCENES = ("wifi_autoplay", "feed_click", "search_click", "related_click")
DEVICES = ("android", "ios", "tablet", "web")
AUTOPLAY = SCENES.index("wifi_autoplay")
AUTOPLAY_STARTS = 0.75

_SCENE_CLICK = np.array([-0.4, 0.0, 0.7, 0.15])
_DEVICE_CLICK = np.array([0.0, 0.1, -0.15, -0.3])
_SLOT_CLICK = np.array([-0.16, -0.16, -0.1, -0.22])
_CLICK_AXES = np.array([1.2, 1.2, 1.2, 1.2, 0.4, 0.4])
_WATCH_AXES = np.array([0.6, 0.6, 0.6, 0.6, 1.4, -1.0])
_FUNNY, _CONTROVERSIAL, _COMMERCE = (np.isin(np.arange(NUM_CATEGORIES), c) for c in ((0, 5), (1, 6), (2, 3, 8)))
_REWATCH_CHANCE = 0.3
_REWATCH_MEAN = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Impressions:
    """Videos shown to users: columns of one length N.

    Args:
        users: The viewing users.
        videos: The shown videos.
        day_index: Days since the world's first day.
        hour: Hour of the day, 0 to 23.
        scene: Index into SCENES.
        device: Index into DEVICES.
        slot: Place on the page, from 0.
    """

    users: Users
    videos: Videos
    day_index: int
    hour: Ints
    scene: Ints
    device: Ints
    slot: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchLaw:
    """Law of the played share of a video: a complete play with some probability, else a power law.

    P(ratio < r) = (1 - complete) r^shape for r <= 1. A complete play may be a rewatch. Played time is rounded up to ms.

    Args:
        complete: Probability of a complete play, shape (N,).
        shape: Exponent of the ratio of an incomplete play, shape (N,).
        duration_ms: Shape (N,).
    """

    complete: Floats
    shape: Floats
    duration_ms: Ints

    def mean_ratio(self) -> Floats:
        """Return E[min(play_ms / duration_ms, 1)]; rounding up adds half a millisecond on average."""
        return self.complete + (1.0 - self.complete) * (
            self.shape / (self.shape + 1.0) + 0.5 / self.duration_ms.astype(np.float64)
        )

    def reaches(self, threshold_ms: int) -> Floats:
        """Return P(play_ms >= threshold_ms), equal to P(unrounded time > threshold_ms - 1)."""
        ratio = (threshold_ms - 1) / self.duration_ms
        within = self.complete + (1.0 - self.complete) * (1.0 - np.minimum(ratio, 1.0) ** self.shape)
        beyond = self.complete * _REWATCH_CHANCE * np.exp(-(np.maximum(ratio, 1.0) - 1.0) / _REWATCH_MEAN)
        return np.where(ratio < 1.0, within, beyond)

    def draw(self, stays: Floats, amount: Floats) -> Ints:
        """Draw played times in ms, from two uniform numbers in (0, 1) per row; shape (N,)."""
        rewatch = 1.0 - _REWATCH_MEAN * np.log(np.minimum(amount / _REWATCH_CHANCE, 1.0))
        ratio = np.where(stays < self.complete, rewatch, amount ** (1.0 / self.shape))
        return np.maximum(np.ceil(ratio * self.duration_ms), 1.0).astype(np.int64)


def watch_law(interest: Floats, duration_ms: Ints, clicked: bool) -> WatchLaw:
    """Return the law of the played time, with or without a click; slot, device and scene have no effect."""
    interest = interest + (0.3 if clicked else -0.3) - 0.55 * np.log(duration_ms / 25_000.0)
    return WatchLaw(
        complete=_sigmoid(-3.5 + 0.7 * interest),
        shape=np.exp(-0.57 + 0.45 * interest),
        duration_ms=duration_ms,
    )


def watch_interest(affinity: Floats, watch_bias: Floats, quality: Floats, clickbait: Floats) -> Floats:
    """Return each user's interest in watching each video, apart from its length; shape (N,)."""
    return affinity + 0.5 * watch_bias + 0.5 * quality - 0.6 * clickbait


def watch_affinity(taste: Floats, factor: Floats) -> Floats:
    """Return each user's affinity for watching each video, about standard normal; shape (N,)."""
    return np.einsum("nd,nd,d->n", taste, factor, _WATCH_AXES) / np.sqrt(TASTE_DIM)


def click_probability(config: SyntheticConfig, rows: Impressions) -> Floats:
    """Return P(click = 1) of each row, the column true_ctr; shape (N,)."""
    users, videos = rows.users, rows.videos
    affinity = np.einsum("nd,nd,d->n", users.taste, videos.factor, _CLICK_AXES) / np.sqrt(TASTE_DIM)
    taste = 0.65 * affinity + 0.5 * users.click_bias + 0.35 * videos.appeal + 0.35 * videos.clickbait
    context = _SCENE_CLICK[rows.scene] + _DEVICE_CLICK[rows.device] + _SLOT_CLICK[rows.device] * rows.slot
    context += 0.15 * np.cos(2.0 * np.pi * (rows.hour - 21) / 24.0)
    drift = 0.35 * fashion(config, "click", rows.day_index)[videos.category]
    season = 0.1 * np.sin(2.0 * np.pi * rows.day_index / 30.0)
    return _sigmoid(-1.35 + taste + context + drift + season)


def true_columns(config: SyntheticConfig, rows: Impressions) -> dict[str, Floats]:
    """Return the truth of every task on every row, given its task's space; each of shape (N,)."""
    click = click_probability(config, rows)
    unasked = (1.0 - click) * AUTOPLAY_STARTS * (rows.scene == AUTOPLAY)
    wanted, idle = _watch_laws(rows)
    view = click * wanted.reaches(config.valid_view_ms) + unasked * idle.reaches(config.valid_view_ms)
    completion = (click * wanted.mean_ratio() + unasked * idle.mean_ratio()) / (click + unasked)
    return {"true_ctr": click, "true_vtr": view, "true_vcr": completion, **_true_reactions(rows)}


def _true_reactions(rows: Impressions) -> dict[str, Floats]:
    users, videos = rows.users, rows.videos
    stay = watch_affinity(users.taste, videos.factor)
    liking = 0.5 * stay + 0.5 * videos.quality - 0.4 * videos.clickbait
    length = np.log(videos.duration_ms / 25_000.0)
    funny, heated, goods = (kind[videos.category] for kind in (_FUNNY, _CONTROVERSIAL, _COMMERCE))
    cart = _sigmoid(-3.3 + 1.6 * goods + 0.5 * users.spending + 0.3 * stay - 0.2 * videos.price)
    buy_from_cart = _sigmoid(-1.9 + 0.7 * users.spending - 0.9 * videos.price)
    return {
        "true_shr": _sigmoid(-4.3 + 1.5 * funny - 0.5 * length + 0.7 * users.sociability + 0.5 * liking),
        "true_cmr": _sigmoid(-4.7 + 1.3 * heated + 0.8 * videos.controversy + 0.7 * users.talkativeness),
        "true_cart": cart,
        "true_wish": _sigmoid(-4.0 + 1.4 * goods + 0.4 * stay + 0.8 * videos.price),
        "true_buy": cart * buy_from_cart,
        "true_follow": _sigmoid(-4.2 + 0.7 * liking + 0.5 * users.sociability - 0.3 * videos.controversy),
        "true_favourite": _sigmoid(-3.6 + 0.9 * liking + 0.3 * length - 0.3 * users.click_bias),
        "true_rating": 1.0 + 4.0 * _sigmoid(0.6 + 0.9 * liking - 0.3 * videos.controversy),
    }


def outcomes(
    config: SyntheticConfig, rows: Impressions, truth: dict[str, Floats], streams: ColumnStreams
) -> dict[str, pa.Array]:
    """Draw the outcomes of impressions.

    Args:
        config: The configuration of the world.
        rows: The impressions.
        truth: The impressions' `true_columns`.
        streams: The file's random streams; each outcome draws from its own.

    Returns:
        Columns of N rows: click, played, share, comment, cart, wish, buy, follow and favourite (0 or 1), play_ms
        (null where not played) and rating (1 to 5, null where not given).
    """

    def happens(column: str, probability: Floats) -> NDArray[np.bool_]:
        return streams[column].random(len(probability)) < probability

    click = happens("click", truth["true_ctr"])
    played = click | happens("played", AUTOPLAY_STARTS * (rows.scene == AUTOPLAY))
    cart = click & happens("cart", truth["true_cart"])
    stars, given = _ratings(rows, truth["true_rating"], streams)
    drawn = {
        "click": click,
        "played": played,
        "share": played & happens("share", truth["true_shr"]),
        "comment": played & happens("comment", truth["true_cmr"]),
        "cart": cart,
        "wish": click & happens("wish", truth["true_wish"]),
        "buy": cart & happens("buy", truth["true_buy"] / truth["true_cart"]),
        "follow": played & happens("follow", truth["true_follow"]),
        "favourite": played & happens("favourite", truth["true_favourite"]),
    }
    return {
        **{column: pa.array(happened.astype(np.int8)) for column, happened in drawn.items()},
        "play_ms": pa.array(_played_ms(rows, click, streams), mask=~played),
        "rating": pa.array(stars, mask=~(played & given)),
    }


def _watch_laws(rows: Impressions) -> tuple[WatchLaw, WatchLaw]:
    """Return the law of a play after a click, and of an automatic play."""
    affinity = watch_affinity(rows.users.taste, rows.videos.factor)
    interest = watch_interest(affinity, rows.users.watch_bias, rows.videos.quality, rows.videos.clickbait)
    wanted, idle = (watch_law(interest, rows.videos.duration_ms, clicked) for clicked in (True, False))
    return wanted, idle


def _played_ms(rows: Impressions, click: NDArray[np.bool_], streams: ColumnStreams) -> Ints:
    stays, amount = 1.0 - streams["play_ms"].random((2, len(click)))
    wanted, idle = (law.draw(stays, amount) for law in _watch_laws(rows))
    return np.where(click, wanted, idle)


def _ratings(rows: Impressions, mean: Floats, streams: ColumnStreams) -> tuple[Floats, NDArray[np.bool_]]:
    """Draw the stars, one plus a binomial number out of four, so that the mean is exact; and the mask of raters."""
    chance = _sigmoid(-3.7 + 0.6 * rows.users.talkativeness)
    gives, *trials = streams["rating"].random((5, len(mean)))
    return 1.0 + np.sum([trial < (mean - 1.0) / 4.0 for trial in trials], axis=0), gives < chance


def _sigmoid(logit: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-logit))
