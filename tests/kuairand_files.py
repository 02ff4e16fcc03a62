"""KuaiRand's files, made by hand, and their import."""

import csv
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from features.errors import DataError
from features.kuairand.partitions import import_kuairand

Row = dict[str, Any]
UPSTREAM = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
LOG_HEADER = UPSTREAM.split(",")
USERS = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
    "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,register_days,"
    "register_days_range," + ",".join(f"onehot_feat{index}" for index in range(18)) + "\n"
    '1,full_active,0,1,1,514,500+,150,"[100,1k)",34,"[30,60)",799,730+,1,1,29,949,,0,0,14,135,6,3,0,0.0,1.0,0.0,0,0,0\n'
    '2,high_active,0,-124,1,7,"(0,10]",20,"[10,100)",3,"[1,5)",14,8-14,1,3,2,1160,4.0,0,0,31,283,6,2,2,1.0,0,1,0,0,0\n'
)
VIDEOS = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
    "music_id,music_type,tag\n"
    '10,100,NORMAL,2022-04-01,LongImport,0.0,20000.0,720.0,1280.0,9155697141,9.0,"39,68"\n'
    "11,100,NORMAL,2022-04-02,Web,0.0,5000.0,1280.0,720.0,0,,2\n"
    "12,101,AD,2022-04-03,Web,0.0,,0.0,720.0,6618412736,4.0,\n"
)
CHINA = timezone(timedelta(hours=8))


def china(text: str) -> int:
    """Milliseconds of a time of 2022 in China, "04-08 23:50"."""
    return int(datetime.strptime(f"2022-{text}", "%Y-%m-%d %H:%M").replace(tzinfo=CHINA).timestamp() * 1000)


def line(user: int, video: int, when: str, date: int | None = None, **values: int) -> Row:
    """A line of the log: somebody was shown something, and nothing came of it unless said otherwise."""
    row: Row = dict.fromkeys(LOG_HEADER, 0) | {"tab": 1, "duration_ms": 20_000}
    date = date or 20220000 + int(when[:5].replace("-", ""))
    return row | {"user_id": user, "video_id": video, "time_ms": china(when), "date": date} | values


def write_csv(path: Path, rows: Sequence[Row], header: Sequence[str] = LOG_HEADER) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    (directory / "user_features_pure.csv").write_text(USERS)
    (directory / "video_features_basic_pure.csv").write_text(VIDEOS)
    # It holds averages of the month that is to be predicted; to read it would fail.
    (directory / "video_features_statistic_pure.csv").write_text("a future\n")
    return directory


def refusal(source: Path, error: type[Exception] = DataError, **options: Any) -> str:
    """The one line that an import is refused with; it has to leave nothing behind."""
    logs = source.parent / "logs"
    before = sorted(logs.rglob("*")) if logs.exists() else None
    with pytest.raises(error) as caught:
        import_kuairand(source, logs, **options)
    assert (sorted(logs.rglob("*")) if logs.exists() else None) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


THREE_DAYS = [
    line(1, 10, "04-08 09:00", is_click=1, long_view=1, play_time_ms=10_000),
    line(1, 11, "04-08 10:00", is_like=1, duration_ms=5_000, play_time_ms=5_000),
    line(2, 10, "04-08 11:00", tab=0),
    line(1, 12, "04-09 09:00", is_click=1, duration_ms=0, play_time_ms=900),
    line(1, 10, "04-09 10:00"),
    line(1, 11, "04-10 08:00"),
]
