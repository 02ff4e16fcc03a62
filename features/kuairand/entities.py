"""Static features of users and videos: the feature files, as columns of an impression."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import DataError
from features.kuairand.source import read_table

_COUNTS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
_RANGES = tuple(f"{name}_range" for name in _COUNTS)
_ONE_HOT = tuple(f"onehot_feat{index}" for index in range(18))
_USER_TYPES = {
    **dict.fromkeys(("user_id", "is_live_streamer", "is_video_author", *_COUNTS), pa.int64()),
    **dict.fromkeys(("user_active_degree", *_RANGES), pa.string()),
    **dict.fromkeys(_ONE_HOT, pa.float64()),  # upstream writes some of them as 1.0
}
_USER_CATEGORIES = ("user_active_degree", "is_live_streamer", "is_video_author", *_RANGES, *_ONE_HOT)
_VIDEO_TYPES = {
    **dict.fromkeys(("video_id", "author_id", "music_id"), pa.int64()),
    **dict.fromkeys(("video_type", "upload_type", "upload_dt", "tag"), pa.string()),
    **dict.fromkeys(("video_duration", "server_width", "server_height", "music_type"), pa.float64()),
}
_VIDEO_CATEGORIES = ("video_type", "upload_type", "music_type")


@dataclass(frozen=True, slots=True)
class KuairandEntities:
    """Features of users or videos by id.

    Args:
        ids: Increasing, shape (K,).
        features: K rows in the order of the ids, and a last one for every other id: nulls, and empty lists.
    """

    ids: np.ndarray
    features: pa.Table

    def look_up(self, ids: np.ndarray) -> pa.Table:
        """Return the features of ids of shape (N,), N rows."""
        return self.features.take(id_index(self.ids, ids))


def id_index(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the indices of ids.

    Args:
        ids: Increasing, shape (K,).
        wanted: Shape (N,).

    Returns:
        int64 of shape (N,): the index of each wanted id, K where the id is absent.
    """
    place = np.searchsorted(ids, wanted)
    found = place < len(ids)
    found[found] = ids[place[found]] == wanted[found]
    return np.where(found, place, len(ids))


def read_users(path: Path) -> KuairandEntities:
    """Read `user_features_*.csv`: activity, counts and their ranges, 18 anonymous categories, and a bag of the latter.

    `is_lowactive_period` is left out: all users have 0.

    Raises:
        DataError: The file is not as published.
    """
    table = read_table(path, _USER_TYPES, "user_id")
    columns = {name: table[name] for name in table.column_names if name != "user_id"}
    columns |= {name: _cast(path, name, table[name], pa.int64()) for name in _ONE_HOT}
    columns["user_categories"] = _bags({name: columns[name] for name in _USER_CATEGORIES})
    return _entities(table["user_id"], columns)


def read_videos(path: Path) -> KuairandEntities:
    """Read `video_features_basic_*.csv`: author, type, upload, duration, size, music, tags.

    `visible_status` is left out: it is the state when the data set was made, and all videos have 0.

    Raises:
        DataError: The file is not as published.
    """
    table = read_table(path, _VIDEO_TYPES, "video_id")
    width, height = _known(table["server_width"]), _known(table["server_height"])
    columns = {
        "author_id": table["author_id"],
        "video_type": table["video_type"],
        "upload_type": table["upload_type"],
        "upload_day": _cast(path, "upload_dt", table["upload_dt"], pa.date32()).cast(pa.int32()),  # since 1970
        "video_duration_ms": _known(table["video_duration"]),
        "video_width": width,
        "video_height": height,
        "video_aspect": pc.divide(height, width),
        "music_id": _known(table["music_id"]),
        "music_type": _cast(path, "music_type", table["music_type"], pa.int64()),
        "tags": _cast(path, "tag", pc.split_pattern(table["tag"], ","), pa.list_(pa.int64())),
    }
    columns["video_categories"] = _bags({name: columns[name] for name in _VIDEO_CATEGORIES})
    return _entities(table["video_id"], columns)


def _known(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Replace 0 by null: 0 is no video's music, size or duration."""
    return pc.if_else(pc.equal(column, 0), pa.scalar(None, column.type), column)


def _cast(path: Path, name: str, column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    try:
        return pc.cast(column, kind)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: column {name!r}: {error}") from error


def _bags(columns: dict[str, pa.ChunkedArray]) -> pa.ChunkedArray:
    """Return the known categories of each row as one list of `name=value`, so that one embedding table suffices."""
    texts = [
        pc.binary_join_element_wise(pa.scalar(name), column.cast(pa.string()), "=").to_pylist()
        for name, column in columns.items()
    ]
    bags = [[text for text in row if text is not None] for row in zip(*texts, strict=True)]
    return pa.chunked_array([bags], pa.list_(pa.string()))


def _entities(ids: pa.ChunkedArray, columns: dict[str, pa.ChunkedArray]) -> KuairandEntities:
    features = {}
    for name, column in columns.items():
        values = column.combine_chunks()
        if pa.types.is_list(values.type):  # a null sequence would be refused
            features[name] = pa.array([*(value or [] for value in values.to_pylist()), []], values.type)
        else:
            features[name] = pa.concat_arrays([values, pa.nulls(1, values.type)])
    return KuairandEntities(ids.to_numpy(), pa.table(features))
