"""Preflight: checks of a day's log before it is trained, against the newest entries of the ledger.

A finding is one line: the figure, the expected figure, and the key of the config that limits it. Preflight reads
figures alone, neither a log nor a model.
"""

import math
import statistics
from collections.abc import Iterator, Sequence

from features.figure import figure
from features.profile import DayProfile
from features.schema import Schema
from pipeline.config.daily import PreflightConfig
from pipeline.daily.noise import mean_noise, rows_of_both, share_noise
from pipeline.daily.ratios import within_ratio

_ERRORS = 4.0  # standard errors within which a figure is noise


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
        known = [profile for profile in earlier if column in profile.nulls]
        if not known:
            continue
        share, usual = count / today.rows, statistics.median(profile.nulls[column] / profile.rows for profile in known)
        rows = rows_of_both(today.rows, (profile.rows for profile in known))
        if abs(share - usual) > max(config.nulls, share_noise(usual, rows, _ERRORS)):
            yield (
                f"column {column!r} is null in {share:.1%} of the rows, usual is {usual:.1%} (daily.preflight.nulls "
                f"{config.nulls:g})"
            )


def _labels(config: PreflightConfig, today: DayProfile, earlier: Sequence[DayProfile]) -> Iterator[str]:
    for task in today.labels:
        mean = today.label_mean(task)
        known = [profile for profile in earlier if profile.label_mean(task) is not None]
        if mean is None or not known:
            continue
        usual = statistics.median(found for profile in known if (found := profile.label_mean(task)) is not None)
        near = abs(mean - usual) <= _label_noise(task, today, known)
        if not near and not within_ratio(mean, usual, config.label_ratio):
            yield (
                f"task {task!r} has a mean label of {figure(mean)}, usual is {figure(usual)} "
                f"(daily.preflight.label_ratio {config.label_ratio:g})"
            )


def _label_noise(task: str, today: DayProfile, earlier: Sequence[DayProfile]) -> float:
    """Return the deviation of a mean label that chance explains, by the labels of the earlier days.

    The size of a large label is the mean label of a label's unit: sum of squares over sum, 1 for labels 0 and 1.
    """
    rows, total, squares = (sum(values) for values in zip(*(profile.labels[task] for profile in earlier), strict=True))
    variance = max(squares / rows - (total / rows) ** 2, 0.0)
    total, squares = (sum(values) for values in zip((total, squares), today.labels[task][1:], strict=True))
    scale = squares / max(abs(total), math.sqrt(squares)) if squares else 0.0
    both = rows_of_both(today.labels[task][0], (profile.labels[task][0] for profile in earlier))
    return mean_noise(variance, scale, both, _ERRORS)


def _unseen(config: PreflightConfig, today: DayProfile, earlier: Sequence[DayProfile]) -> Iterator[str]:
    for name, sketch in today.ids.items():
        days = [profile.ids[name] for profile in earlier if name in profile.ids]  # the newest first
        share = sketch.unseen(days)
        shares = [found for place, day in enumerate(days) if (found := day.unseen(days[place + 1 :])) is not None]
        if share is None or not shares:
            continue
        usual = statistics.median(shares)
        ids = rows_of_both(sketch.effective_ids, (day.effective_ids for day in days[: len(shares)]))
        if share > usual + max(config.unseen_ids, share_noise(usual, ids, _ERRORS)):
            yield (
                f"{share:.1%} of the rows have an id of {name!r} that was on none of the last {len(days)} days, usual "
                f"is {usual:.1%} (daily.preflight.unseen_ids {config.unseen_ids:g})"
            )
