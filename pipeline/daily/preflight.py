"""Preflight: checks of a day's log before it is trained, against the newest entries of the ledger.

A finding is one line: the figure, the expected figure, and the key of the config that limits it. Preflight reads
figures alone, neither a log nor a model.
"""

import statistics
from collections.abc import Iterator, Sequence

from features.figure import figure
from features.profile import DayProfile
from features.schema import Schema
from pipeline.config.daily import PreflightConfig
from pipeline.daily.ratios import within_ratio

_NOISE = 4.0  # standard errors within which a mean label is noise


def check_profile(
    config: PreflightConfig, schema: Schema, today: DayProfile, earlier: Sequence[DayProfile]
) -> list[str]:
    """Compare a day's figures with those of earlier days.

    Args:
        config: Limits of preflight.
        schema: The declared tasks.
        today: The day's figures.
        earlier: Figures of the newest entries that have some, at most `window`.

    Returns:
        One line for each finding; empty if the day may be trained.
    """
    problems = list(_empty_spaces(schema, today))
    if len(earlier) >= config.min_entries:
        problems += [*_rows(config, today, earlier), *_nulls(config, today, earlier)]
        problems += [*_labels(config, today, earlier), *_unseen(config, today, earlier)]
    return problems


def _empty_spaces(schema: Schema, today: DayProfile) -> Iterator[str]:
    for task in schema.tasks:
        if task.name in today.labels and not today.labels[task.name][0]:
            yield f"no row is in the space of task {task.name!r} ({task.label}): look at its columns"


def _rows(config: PreflightConfig, today: DayProfile, earlier: Sequence[DayProfile]) -> Iterator[str]:
    usual = statistics.median(profile.rows for profile in earlier)
    if not usual / config.rows_ratio <= today.rows <= usual * config.rows_ratio:
        yield f"{today.rows:,} rows, usual are {usual:,.0f} (daily.preflight.rows_ratio {config.rows_ratio:g})"


def _nulls(config: PreflightConfig, today: DayProfile, earlier: Sequence[DayProfile]) -> Iterator[str]:
    for column, count in today.nulls.items():
        shares = [profile.nulls[column] / profile.rows for profile in earlier if column in profile.nulls]
        if shares and abs(count / today.rows - statistics.median(shares)) > config.nulls:
            yield (
                f"column {column!r} is null in {count / today.rows:.1%} of the rows, usual is "
                f"{statistics.median(shares):.1%} (daily.preflight.nulls {config.nulls:g})"
            )


def _labels(config: PreflightConfig, today: DayProfile, earlier: Sequence[DayProfile]) -> Iterator[str]:
    for task in today.labels:
        found = today.label_mean(task)
        means = [known[0] for profile in earlier if (known := profile.label_mean(task)) is not None]
        if found is None or not means:
            continue
        (mean, error), usual = found, statistics.median(means)
        near = abs(mean - usual) <= _NOISE * error
        if not near and not within_ratio(mean, usual, config.label_ratio):
            yield (
                f"task {task!r} has a mean label of {figure(mean)}, usual is {figure(usual)} "
                f"(daily.preflight.label_ratio {config.label_ratio:g})"
            )


def _unseen(config: PreflightConfig, today: DayProfile, earlier: Sequence[DayProfile]) -> Iterator[str]:
    newest_first = list(earlier)
    for name, sketch in today.ids.items():
        days = [profile.ids[name] for profile in newest_first if name in profile.ids]
        share = sketch.unseen(days)
        usual = [found for place, day in enumerate(days) if (found := day.unseen(days[place + 1 :])) is not None]
        if share is not None and usual and share > statistics.median(usual) + config.unseen_ids:
            yield (
                f"{share:.1%} of the rows have an id of {name!r} that was on none of the last {len(days)} days, usual "
                f"is {statistics.median(usual):.1%} (daily.preflight.unseen_ids {config.unseen_ids:g})"
            )
