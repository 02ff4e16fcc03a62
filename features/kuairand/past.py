"""Past of a day: the users' histories and the outcomes of earlier impressions.

No column of a row may come from its own day, or from later. The log's `date` is the day on which an impression was
reported, up to an hour or two after its event (`time_ms`): the first events of a day precede the last ones of the day
before, and a few impressions occur in the log twice, on two dates. So an impression enters the past of a day only if
it has an earlier date AND its event precedes every row of that day; the others (5 %) enter the next day's. An
impression reported twice counts once.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.kuairand.entities import KuairandEntities
from features.kuairand.histories import Histories
from features.kuairand.rates import Rates, joint_key
from features.kuairand.source import read_table

HISTORY_LENGTH = 50
OUTCOMES = ("click", "long_view", "like", "comment", "profile_enter", "completion")
UNKNOWN = -1
_PRIOR_ROWS = 10.0
_SEQUENCES = {"watched": "watch_seq", "long_viewed": "long_watch_seq", "liked": "like_seq"}
_CHOSEN_BY = {"long_viewed": "long_view", "liked": "like"}
SEEN, LONG_VIEWED, LIKED = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PastImpressions:
    """N impressions and their outcomes.

    Args:
        user_id: int64 of shape (N,), like all fields but the outcomes.
        video_id: The video.
        author_id: The video's author; UNKNOWN if no file has it.
        tab: The tab in which the video was shown; UNKNOWN if no file has it.
        time_ms: Time of the event.
        outcomes: float64 of shape (N, len(OUTCOMES)); NaN where unknown.
    """

    user_id: np.ndarray
    video_id: np.ndarray
    author_id: np.ndarray
    tab: np.ndarray
    time_ms: np.ndarray
    outcomes: np.ndarray

    def take(self, rows: np.ndarray) -> "PastImpressions":
        """Return the rows of an index or a mask."""
        return PastImpressions(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def then(self, other: "PastImpressions") -> "PastImpressions":
        """Return these impressions followed by the others."""
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return PastImpressions(**{name: np.concatenate(pair) for name, pair in pairs.items()})

    @property
    def keys(self) -> np.ndarray:
        """Identity of each impression, int64 of shape (N,)."""
        return joint_key(self.user_id, self.video_id, self.time_ms)

    def outcome(self, name: str) -> np.ndarray:
        """Return one outcome, shape (N,)."""
        return self.outcomes[:, OUTCOMES.index(name)]


def impressions_of(log: pa.Table, videos: KuairandEntities) -> PastImpressions:
    """Return the impressions of N rows of the log.

    Args:
        log: Columns as in `source.LOG_COLUMNS`.
        videos: Features of the videos, for their authors.
    """
    play_ms, duration_ms = log["play_time_ms"].to_numpy(), log["duration_ms"].to_numpy()
    completion = np.where(duration_ms > 0, np.clip(play_ms / np.maximum(duration_ms, 1), 0.0, 1.0), np.nan)
    labels = [log[name].to_numpy() for name in ("is_click", "long_view", "is_like", "is_comment", "is_profile_enter")]
    return PastImpressions(
        **{name: log[name].to_numpy() for name in ("user_id", "video_id", "tab", "time_ms")},
        author_id=_authors(log["video_id"].to_numpy(), videos),
        outcomes=np.column_stack([*labels, completion]),
    )


def _authors(video_id: np.ndarray, videos: KuairandEntities) -> np.ndarray:
    return videos.look_up(video_id)["author_id"].fill_null(UNKNOWN).to_numpy()


class Past:
    """State of all days before a day. Call in order of days: `begin_day`, `columns`, `add_day`.

    Args:
        videos: Features of the videos, for their authors.
    """

    def __init__(self, videos: KuairandEntities) -> None:
        self._videos = videos
        self._histories = {name: Histories(HISTORY_LENGTH) for name in _SEQUENCES}
        self._kinds = Histories(HISTORY_LENGTH)  # kind of each watched video, entry by entry
        self._rates = {name: Rates(OUTCOMES, _PRIOR_ROWS) for name in ("user", "video", "author", "video_tab")}
        self._waiting: PastImpressions | None = None

    def add_sequences(self, path: Path) -> int:
        """Start from the users' actions before the log's first day.

        Args:
            path: `user_sequences_before_*.parquet`: the last exposures, long views and likes of each user.

        Returns:
            The time of the last action, time_ms.

        Raises:
            DataError: The file is not as published.
        """
        types = {"user_id": pa.int64(), "last_time_ms": pa.int64()}
        table = read_table(path, types | dict.fromkeys(_SEQUENCES.values(), pa.list_(pa.int64())), "user_id")
        lists = {name: table[column].combine_chunks() for name, column in _SEQUENCES.items()}
        owners = {
            name: np.repeat(table["user_id"].to_numpy(), pc.list_value_length(videos).to_numpy())
            for name, videos in lists.items()
        }
        for name, videos in lists.items():
            self._histories[name].extend(owners[name], videos.flatten().to_numpy())
        watched = lists["watched"].flatten().to_numpy()
        outcomes = np.full((len(watched), len(OUTCOMES)), np.nan)
        for name, outcome in _CHOSEN_BY.items():
            outcomes[:, OUTCOMES.index(outcome)] = _is_chosen(lists["watched"], lists[name])
        self._kinds.extend(owners["watched"], _kinds_of(outcomes))
        unknown = np.full(len(watched), UNKNOWN)
        self._count(
            PastImpressions(
                user_id=owners["watched"],
                video_id=watched,
                author_id=_authors(watched, self._videos),
                tab=unknown,
                time_ms=unknown,
                outcomes=outcomes,
            )
        )
        return int(table["last_time_ms"].to_numpy().max(initial=0))

    def begin_day(self, first_ms: int) -> None:
        """Add the waiting impressions that precede the first row of a day, `time_ms`."""
        if self._waiting is None:
            return
        early = self._waiting.time_ms < first_ms
        rows, self._waiting = self._waiting.take(early), self._waiting.take(~early)
        rows = rows.take(np.unique(rows.keys, return_index=True)[1])
        rows = rows.take(np.argsort(rows.time_ms, kind="stable"))
        self._count(rows)
        for name, histories in self._histories.items():
            chosen = rows.take(rows.outcome(_CHOSEN_BY[name]) == 1) if name in _CHOSEN_BY else rows
            histories.extend(chosen.user_id, chosen.video_id)
        self._kinds.extend(rows.user_id, _kinds_of(rows.outcomes))

    def columns(self, rows: PastImpressions) -> dict[str, pa.Array]:
        """Return columns of N rows: lists `watched_video_id` and the like, counts and rates `past_*`.

        `watched_kind` holds the outcome of each entry of `watched_video_id`: SEEN, LONG_VIEWED or LIKED.

        The rows' own outcomes are not read.
        """
        columns: dict[str, pa.Array] = {
            f"{name}_video_id": histories.look_up(rows.user_id) for name, histories in self._histories.items()
        }
        columns["watched_kind"] = self._kinds.look_up(rows.user_id)
        for name, keys in _keys(rows).items():
            found = self._rates[name].look_up(keys)
            columns |= {f"past_{name}_{outcome}": column for outcome, column in found.items()}
        return columns

    def add_day(self, rows: PastImpressions) -> None:
        """Keep a day for the days after it."""
        self._waiting = rows if self._waiting is None else self._waiting.then(rows)

    def _count(self, rows: PastImpressions) -> None:
        for name, keys in _keys(rows).items():
            known = rows.tab != UNKNOWN if name == "video_tab" else slice(None)
            self._rates[name].add(keys[known], rows.outcomes[known])


def _keys(rows: PastImpressions) -> dict[str, np.ndarray]:
    return {
        "user": rows.user_id,
        "video": rows.video_id,
        "author": rows.author_id,
        "video_tab": joint_key(rows.video_id, rows.tab),
    }


def _kinds_of(outcomes: np.ndarray) -> np.ndarray:
    """Return the kind of impressions: SEEN, LONG_VIEWED or LIKED, the last of several that hold; int64 of shape (N,).

    Args:
        outcomes: As in `Impressions`.
    """
    of = {name: outcomes[:, OUTCOMES.index(name)] == 1 for name in _CHOSEN_BY.values()}
    return np.select([of["like"], of["long_view"]], [LIKED, LONG_VIEWED], SEEN).astype(np.int64)


def _is_chosen(watched: pa.ListArray, chosen: pa.ListArray) -> np.ndarray:
    """Return 1.0 for exposures that are in another list, else 0.0; shape (sum of the watched lists' lengths,).

    A user's long views are some of the exposures, in the same order. Both lists end with the latest entry, and each
    was cut to its own last 50. So they are matched from the end.
    """
    flags: list[float] = []
    for videos, wanted in zip(watched.to_pylist(), chosen.to_pylist(), strict=True):
        own = [0.0] * len(videos)
        left = len(wanted) - 1
        for place in range(len(videos) - 1, -1, -1):
            if left >= 0 and videos[place] == wanted[left]:
                own[place] = 1.0
                left -= 1
        flags.extend(own)
    return np.array(flags)
