"""Import of KuaiRand: no row knows its own day or a later one, by hand and on the real log."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from kuairand_files import THREE_DAYS, Row, china, line, refusal, source, write_csv

from features.encoding import Encoder, check_columns
from features.kuairand.histories import Histories
from features.kuairand.partitions import import_kuairand
from features.kuairand.past import HISTORY_LENGTH, Past, PastImpressions
from features.kuairand.source import LABELS, LOG_COLUMNS
from features.schema import Schema
from features.statistics import StatisticsAccumulator

__all__ = ["source"]  # fixtures

ROOT = Path(__file__).parent.parent
REAL = ROOT.parent / "shared" / "data" / "kuairand-pure"
# What came of an impression, or was made of it: never an input.
OUTCOMES = {*LABELS, "play_time_ms", "profile_stay_time", "comment_stay_time", "watch_ratio", "finish", "like"}
OUTCOMES |= {"long_watch", "is_positive"}


def imported(source: Path, rows: Sequence[Row], **options: Any) -> dict[str, list[Row]]:
    """Rows by day, ISO dates, of upstream CSVs with these lines."""
    write_csv(source / "log_standard_4_08_to_4_21_pure.csv", rows)
    return read_days(source, **options)


def read_days(source: Path, **options: Any) -> dict[str, list[Row]]:
    logs = source.parent / "logs"
    import_kuairand(source, logs, **options)
    return {
        path.parent.name.removeprefix("dt="): pq.read_table(path).to_pylist()
        for path in sorted(logs.glob("dt=*/part-00000.parquet"))
    }


def write_sequences(source: Path, last: str = "04-07 23:59", **lists: list[int]) -> None:
    """Write the past of user 1; absent lists are empty."""
    columns = {name: pa.array([lists.get(name, [])], pa.list_(pa.int64())) for name in ("like_seq", "long_watch_seq")}
    watched = pa.array([lists["watch_seq"]], pa.list_(pa.int64()))
    table = pa.table({"user_id": [1], "last_time_ms": [china(last)], "watch_seq": watched} | columns)
    pq.write_table(table, source / "user_sequences_before_20220408.parquet")


def looks_ahead(days: dict[str, list[Row]]) -> list[str]:
    """Rows that know more than what happened before their day."""
    found = []
    rows: list[Row] = [row | {"day": day} for day, rows in days.items() for row in rows]
    for row in rows:
        own = [other for other in rows if other["user_id"] == row["user_id"]]
        earlier = [other["video_id"] for other in own if other["day"] < row["day"]]
        if set(row["watched_video_id"]) - set(earlier) or row["past_user_impressions"] > len(earlier):
            found.append(f"{row['day']} video {row['video_id']}")
    return found


def test_a_row_knows_the_days_before_its_own_and_no_more(source: Path) -> None:
    """A history or a rate that a row's own day, or its own outcome, entered."""
    days = imported(source, THREE_DAYS)
    assert looks_ahead(days) == []
    assert [row["watched_video_id"] for row in days["2022-04-08"]] == [[], [], []]
    assert [row["watched_video_id"] for row in days["2022-04-09"]] == [[10, 11], [10, 11]]
    assert [row["long_viewed_video_id"] for row in days["2022-04-09"]] == [[10], [10]]
    assert [row["liked_video_id"] for row in days["2022-04-09"]] == [[11], [11]]
    assert days["2022-04-10"][0]["watched_video_id"] == [10, 11, 12, 10]
    # What came of each: a long view, a like, nothing, nothing.
    assert [row["watched_kind"] for row in days["2022-04-09"]] == [[1, 2], [1, 2]]
    assert days["2022-04-10"][0]["watched_kind"] == [1, 2, 0, 0]


def test_the_check_for_looking_ahead_finds_a_day_that_enters_too_early(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: a check that would pass whatever the import did."""
    columns = Past.columns

    def too_early(past: Past, rows: PastImpressions) -> dict[str, pa.Array]:
        past.add_day(rows)
        past.begin_day(2**60)
        return columns(past, rows)

    monkeypatch.setattr(Past, "columns", too_early)
    assert "2022-04-08 video 10" in looks_ahead(imported(source, THREE_DAYS))


def test_rates_are_those_of_earlier_days_shrunk_by_ten_rows(source: Path) -> None:
    """Rates over the wrong rows, a wrong prior, or 0 where nothing is known."""
    days = imported(source, THREE_DAYS)
    first = days["2022-04-08"][0]
    assert {first[name] for name in first if name.startswith("past_")} == {None, 0}
    of_12, of_10 = days["2022-04-09"]
    # On 04-08 there were three impressions: one click, completions .5, 1 and 0. User 1 had two of them.
    assert of_10["past_user_impressions"] == 2
    assert of_10["past_user_click"] == pytest.approx((1 + 10 / 3) / 12)
    assert of_10["past_user_completion"] == pytest.approx((1.5 + 10 * 0.5) / 12)
    assert (of_10["past_video_impressions"], of_12["past_video_impressions"]) == (2, 0)
    assert of_10["past_video_click"] == pytest.approx((1 + 10 / 3) / 12)
    assert of_12["past_video_click"] is None
    assert of_10["past_author_impressions"] == 3
    assert of_10["past_video_tab_impressions"] == 1
    assert of_10["past_video_tab_long_view"] == pytest.approx((1 + 10 / 3) / 11)
    # Video 12 has no duration, so four of the five impressions by now know a completion.
    of_11 = days["2022-04-10"][0]
    assert of_11["past_user_impressions"] == 4
    assert of_11["past_user_completion"] == pytest.approx((1.5 + 10 * 1.5 / 4) / 13)


def test_what_happened_after_the_first_row_of_a_day_waits_for_the_next(source: Path) -> None:
    """`date` is when a row was reported: trusting it alone lets a row know what its user did up to an hour later."""
    days = imported(
        source,
        [
            line(1, 10, "04-08 09:00"),
            line(1, 11, "04-08 23:50", is_like=1),
            line(1, 12, "04-08 23:20", date=20220409),
            line(1, 10, "04-10 09:00"),
        ],
    )
    assert days["2022-04-09"][0]["watched_video_id"] == [10]
    assert days["2022-04-09"][0]["liked_video_id"] == []
    assert days["2022-04-10"][0]["watched_video_id"] == [10, 12, 11]
    assert days["2022-04-10"][0]["liked_video_id"] == [11]


def test_an_impression_reported_on_two_dates_does_not_know_itself(source: Path) -> None:
    """The real log has 45 such pairs: the second would be told the outcome of the first."""
    twice = [line(1, 10, "04-08 23:55", date=date, is_click=1) for date in (20220408, 20220409)]
    days = imported(source, [*twice, line(1, 11, "04-10 09:00")])
    assert days["2022-04-09"][0]["past_user_impressions"] == 0
    assert days["2022-04-10"][0]["past_user_impressions"] == 1


def test_rows_that_are_there_twice_stay_and_count_once_in_the_past(source: Path) -> None:
    """A dropped row (published figures count them), or a past in which one impression counts for two."""
    twice = [line(1, 10, "04-08 09:00", is_click=1)] * 2
    write_csv(source / "log_standard_4_08_to_4_21_pure.csv", [*twice, line(1, 11, "04-09 09:00")])
    result = import_kuairand(source, source.parent / "logs")
    assert (result.rows, result.num_repeated) == ({"2022-04-08": 2, "2022-04-09": 1}, 1)
    table = pq.read_table(source.parent / "logs" / "dt=2022-04-09" / "part-00000.parquet")
    assert table["past_user_impressions"].to_pylist() == [1]
    assert table["watched_video_id"].to_pylist() == [[10]]


def test_days_are_the_logs_own_and_hours_are_chinas(source: Path) -> None:
    """Rows put under the UTC date, hours of another zone, or hours from `hourmin`, which is when it was reported."""
    rows = [
        line(2, 11, "04-09 23:59", hourmin=0),
        line(1, 10, "04-09 00:10", hourmin=100),
        line(1, 12, "04-08 23:56", date=20220409, hourmin=0),
        line(1, 10, "04-08 15:59", hourmin=1500),
    ]
    days = imported(source, rows)
    assert {day: [row["hour"] for row in rows] for day, rows in days.items()} == {
        "2022-04-08": [15],
        "2022-04-09": [23, 0, 23],
    }
    assert [row["video_age_days"] for row in days["2022-04-09"]] == [6, 8, 7]
    assert [row["video_id"] for row in days["2022-04-09"]] == [12, 10, 11]  # in order of time


def test_features_of_users_and_videos_are_joined_by_id(source: Path) -> None:
    """Features of another user or video, 0 where a file has nothing, or a null list where a sequence is due."""
    [known, unknown] = imported(source, [line(1, 12, "04-08 09:00"), line(3, 99, "04-08 10:00")])["2022-04-08"]
    assert (known["follow_user_num"], known["fans_user_num_range"], known["onehot_feat4"]) == (514, "[100,1k)", None)
    assert "onehot_feat3=949" in known["user_categories"]
    assert not any(category.startswith("onehot_feat4=") for category in known["user_categories"])
    assert (known["author_id"], known["music_id"], known["tags"]) == (101, 6618412736, [])
    assert (known["video_duration_ms"], known["video_width"], known["video_aspect"]) == (None, None, None)
    assert known["video_categories"] == ["video_type=AD", "upload_type=Web", "music_type=4"]
    assert (unknown["user_categories"], unknown["tags"], unknown["author_id"]) == ([], [], None)
    assert unknown["video_age_days"] is None


def test_parquet_slices_give_the_same_days_as_the_upstream_files(source: Path) -> None:
    """Two readers that disagree, or a slice's own columns (derived from the labels) that get through."""
    expected = imported(source, THREE_DAYS)
    (source / "log_standard_4_08_to_4_21_pure.csv").unlink()
    shutil.rmtree(source.parent / "logs")
    extra = {"watch_ratio": 0.5, "is_positive": 1, "author_id": 7, "tag": "unknown"}
    for name, rows in (("val_20220408_20220408", THREE_DAYS[:3]), ("test_20220409_20220410", THREE_DAYS[3:])):
        pq.write_table(pa.Table.from_pylist([row | extra for row in rows]), source / f"{name}.parquet")
    assert read_days(source) == expected


def test_sequences_start_the_past(source: Path) -> None:
    """Sequences ignored, or long views and likes given to the wrong exposures."""
    write_sequences(source, watch_seq=[12, 10, 11, 10], long_watch_seq=[11, 10], like_seq=[12])
    row = imported(source, [line(1, 10, "04-08 09:00")])["2022-04-08"][0]
    assert row["watched_video_id"] == [12, 10, 11, 10]
    assert (row["long_viewed_video_id"], row["liked_video_id"]) == ([11, 10], [12])
    assert row["watched_kind"] == [2, 0, 1, 1]
    assert (row["past_user_impressions"], row["past_video_impressions"], row["past_video_tab_impressions"]) == (4, 2, 0)
    # Of the two exposures of video 10 the later one was the long view.
    assert row["past_video_long_view"] == pytest.approx((1 + 10 * 2 / 4) / 12)
    assert row["past_video_like"] == pytest.approx((0 + 10 * 1 / 4) / 12)
    assert row["past_video_click"] is None


def test_sequences_that_reach_into_the_log_are_refused(source: Path) -> None:
    """Sequences of another cut of the log, which hold what is to be predicted."""
    write_sequences(source, last="04-08 00:10", watch_seq=[10])
    write_csv(source / "log_standard_4_08_to_4_21_pure.csv", THREE_DAYS)
    assert "'last_time_ms' reaches 2022-04-08, the log begins on 2022-04-08" in refusal(source)


def test_histories_keep_the_last_fifty() -> None:
    """A history that grows without bound, keeps the wrong end, or mixes users."""
    histories = Histories(HISTORY_LENGTH)
    random = np.random.default_rng(3)
    expected: dict[int, list[int]] = {user: [] for user in range(7)}
    for _ in range(12):
        users, videos = random.integers(0, 6, 70), random.integers(0, 1000, 70)
        histories.extend(users, videos)
        for user, video in zip(users.tolist(), videos.tolist(), strict=True):
            expected[user].append(video)
    wanted = np.array([5, 0, 6, 5, 3])
    assert histories.look_up(wanted).to_pylist() == [expected[user][-HISTORY_LENGTH:] for user in wanted.tolist()]
    assert len(expected[5]) > HISTORY_LENGTH


def test_random_exposures_only_on_request(source: Path) -> None:
    """The random log, most of its days' rows and no ranking's own, mixed in unasked, or never readable."""
    write_csv(source / "log_random_4_22_to_5_08_pure.csv", [line(2, 11, "04-08 12:00", is_rand=1)])
    assert [row["is_rand"] for row in imported(source, THREE_DAYS[:2])["2022-04-08"]] == [0, 0]
    shutil.rmtree(source.parent / "logs")
    assert [row["is_rand"] for row in read_days(source, with_random=True)["2022-04-08"]] == [0, 0, 1]


def test_the_command_ends_with_one_json_line(source: Path) -> None:
    """A command that prints a traceback, exits 0 on bad input, or reports other figures than it wrote."""
    logs = source.parent / "logs"
    arguments = [sys.executable, "-m", "jobs.import_kuairand", "--source", str(source), "--logs", str(logs)]

    def ended() -> tuple[int, Row, str]:
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
        return done.returncode, json.loads(done.stdout), done.stderr

    code, result, log = ended()
    assert (code, "found neither" in result["error"], "Traceback" in log) == (3, True, False)
    write_csv(source / "log_standard_4_08_to_4_21_pure.csv", [*THREE_DAYS, THREE_DAYS[0]])
    code, result, _ = ended()
    assert code == 0
    assert (result["rows"], result["repeated_rows"]) == (7, 1)
    assert ended()[0] == 2  # the days are there


@pytest.fixture(scope="module")
def schema() -> Schema:
    return Schema.model_validate(yaml.safe_load((ROOT / "jobs/configs/kuairand.yaml").read_text())["schema"])


def test_no_outcome_is_an_input(schema: Schema) -> None:
    """A label leak: what came of an impression, or a column that is made of it, among the features."""
    assert not OUTCOMES & {feature.source for feature in schema.features}
    assert {name for name in LOG_COLUMNS if name in OUTCOMES} == {*LABELS, "play_time_ms"}


def test_the_shipped_schema_reads_hand_made_days(source: Path, schema: Schema) -> None:
    """A config whose columns the import does not write, or a space that lets unknown durations in."""
    imported(source, THREE_DAYS)
    table = pq.read_table(source.parent / "logs" / "dt=2022-04-09" / "part-00000.parquet")
    check_columns(schema, table.schema, schema.columns())
    rows = encoded(schema, table)
    completion = rows.labels[:, schema.task_names.index("completion")]
    assert completion.tolist() == pytest.approx([np.nan, 0.0], nan_ok=True)
    assert rows.labels[:, schema.task_names.index("valid_view")].tolist() == [1.0, 0.0]


def encoded(schema: Schema, table: pa.Table) -> Any:
    columns = {name: table[name] for name in table.column_names}
    statistics = StatisticsAccumulator(schema)
    statistics.update(columns)
    return Encoder(schema, statistics.finish([])).encode(columns)


@pytest.fixture(scope="module")
def real_days(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    if not REAL.is_dir():
        pytest.skip(f"the log of KuaiRand, which is not part of the project, is not at {REAL}")
    logs = tmp_path_factory.mktemp("kuairand") / "logs"
    import_kuairand(REAL, logs)
    return {path.parent.name.removeprefix("dt="): pq.read_table(path) for path in sorted(logs.glob("dt=*/*.parquet"))}


def test_the_real_log_arrives_whole(real_days: dict[str, pa.Table], schema: Schema) -> None:
    """Rows lost or doubled, labels moved to other rows, or a real day that the shipped schema cannot read."""
    assert list(real_days) == [f"2022-04-{day}" for day in range(25, 31)] + [f"2022-05-0{day}" for day in range(1, 9)]
    table = pa.concat_tables(real_days.values())
    assert len(table) == 228_329
    rates = {"is_click": 0.442, "long_view": 0.311, "is_profile_enter": 0.0185, "is_like": 0.0171, "is_hate": 0.0008}
    for name, rate in (rates | {"is_comment": 0.0025, "is_follow": 0.0013, "is_forward": 0.00085}).items():
        assert np.mean(table[name].to_numpy()) == pytest.approx(rate, abs=0.0005 if rate > 0.1 else 0.00005)
    lengths = [pc.list_value_length(table[name]).to_numpy() for name in ("watched_video_id", "watched_kind")]
    assert np.mean(lengths[0] > 0) > 0.979
    assert np.array_equal(*lengths)
    rows = encoded(schema, real_days["2022-05-08"])
    assert len(rows) == 15_747
    completion = rows.labels[:, schema.task_names.index("completion")]
    assert 0 < np.isnan(completion).sum() == (real_days["2022-05-08"]["duration_ms"].to_numpy() == 0).sum()
    assert np.nanmean(completion) == pytest.approx(0.298, abs=0.03)


def test_the_real_past_is_what_a_loop_over_raw_rows_finds(real_days: dict[str, pa.Table]) -> None:
    """A look ahead, or a wrong join, that only the real log's late and repeated reports would show."""
    log = pa.concat_tables([pq.read_table(path) for path in REAL.glob("*_2022*_2022*.parquet")])
    columns = ("user_id", "video_id", "date", "time_ms", "long_view")
    users, videos, dates, times, long_views = (log[name].to_numpy() for name in columns)
    sequences = pq.read_table(next(REAL.glob("user_sequences_*.parquet")))
    before = {row["user_id"]: row for row in sequences.to_pylist()}
    for day, table in real_days.items():
        first_ms = table["time_ms"].to_numpy().min()
        for row in table.take(list(range(0, len(table), 1500))).to_pylist():
            mask = (users == row["user_id"]) & (dates < int(day.replace("-", ""))) & (times < first_ms)
            own = sorted(set(zip(times[mask].tolist(), videos[mask].tolist(), long_views[mask].tolist(), strict=True)))
            start = before.get(row["user_id"], {"watch_seq": [], "long_watch_seq": []})
            watched = [video for _, video, _ in own]
            assert row["past_user_impressions"] == len(start["watch_seq"]) + len(own)
            assert sorted(row["watched_video_id"]) == sorted((start["watch_seq"] + watched)[-HISTORY_LENGTH:])
            long_viewed = start["long_watch_seq"] + [video for _, video, flag in own if flag]
            assert sorted(row["long_viewed_video_id"]) == sorted(long_viewed[-HISTORY_LENGTH:])
