"""Preflight: checks of a day's log before it is trained, against the newest entries of the ledger.

A figure is refused if it is farther from the median of the newest days than its limit, than its spread over those days
and than chance. Preflight reads figures alone, neither a log nor a model.
"""

import math
import statistics
from collections.abc import Iterator, Sequence

from features.figure import figure
from features.profile import DayProfile
from features.schema import Schema
from pipeline.config.daily import PreflightConfig
from pipeline.daily.finding import Finding
from pipeline.daily.noise import mean_noise, rows_of_both, share_noise
from pipeline.daily.ratios import ratio_apart
from pipeline.daily.spread import spread


def check_profile(
    config: PreflightConfig, schema: Schema, today: DayProfile, earlier: Sequence[DayProfile]
) -> list[Finding]:
    """Compare a day's figures with those of earlier days.

    Args:
        config: Limits of preflight.
        schema: The declared tasks.
        today: The day's figures.
        earlier: Figures of the newest entries that have some, at most `window`, the newest first.

    Returns:
        The findings; empty if the day may be trained.
    """
    findings = list(_empty_spaces(schema, today))
    if len(earlier) >= config.min_entries:
        findings += [*_rows(config, today, earlier), *_nulls(config, today, earlier)]
        findings += [*_labels(config, today, earlier), *_unseen(config, today, earlier)]
    return findings


def _empty_spaces(schema: Schema, today: DayProfile) -> Iterator[Finding]:
    for task in schema.tasks:
        if task.name in today.labels and not today.labels[task.name][0]:
            yield Finding(f"no row is in the space of task {task.name!r} ({task.label}): look at its columns")


def _rows(config: PreflightConfig, today: DayProfile, earlier: Sequence[DayProfile]) -> Iterator[Finding]:
    usual = statistics.median(profile.rows for profile in earlier)
    limit, off = math.log(config.rows_ratio), ratio_apart(today.rows, usual)
    if today.rows > usual:  # no spread excuses fewer rows: half a day has to be refused on any log
        varies = config.spread * spread([math.log(profile.rows) for profile in earlier if profile.rows])
        limit = max(limit, min(varies, math.log(config.rows_ratio_most)))
    if off > limit:
        text = f"{today.rows:,} rows, usual are {usual:,.0f} (daily.preflight.rows_ratio {config.rows_ratio:g})"
        yield Finding(text, "daily.preflight.rows_ratio", needed=math.exp(off))


def _nulls(config: PreflightConfig, today: DayProfile, earlier: Sequence[DayProfile]) -> Iterator[Finding]:
    for column, count in today.nulls.items():
        known = [profile for profile in earlier if column in profile.nulls]
        if not known:
            continue
        shares = [profile.nulls[column] / profile.rows for profile in known]
        share, usual = count / today.rows, statistics.median(shares)
        rows = rows_of_both(today.rows, (profile.rows for profile in known))
        excused = max(config.spread * spread(shares), share_noise(usual, rows, config.noise))
        if abs(share - usual) > max(config.nulls, excused):
            text = (
                f"column {column!r} is null in {share:.1%} of the rows, usual is {usual:.1%} (daily.preflight.nulls "
                f"{config.nulls:g})"
            )
            yield Finding(text, "daily.preflight.nulls", f"column {column!r}", abs(share - usual))


def _labels(config: PreflightConfig, today: DayProfile, earlier: Sequence[DayProfile]) -> Iterator[Finding]:
    for task in today.labels:
        mean = today.label_mean(task)
        known = {place: found for place, day in enumerate(earlier) if (found := day.label_mean(task)) is not None}
        if mean is None or not known:
            continue
        usual = statistics.median(known.values())
        noise = _label_noise(config, task, today, [earlier[place] for place in known])
        is_near = abs(mean - usual) <= max(noise, config.spread * spread(list(known.values())))
        if not is_near and ratio_apart(mean, usual) > math.log(config.label_ratio):
            text = (
                f"task {task!r} has a mean label of {figure(mean)}, usual is {figure(usual)} "
                f"(daily.preflight.label_ratio {config.label_ratio:g})"
            )
            needed = math.exp(min(ratio_apart(mean, usual), 700.0)) if usual and mean / usual > 0 else math.inf
            yield Finding(text, "daily.preflight.label_ratio", f"task {task!r}", needed)


def _label_noise(config: PreflightConfig, task: str, today: DayProfile, earlier: Sequence[DayProfile]) -> float:
    """Return the deviation of a mean label that chance explains, by the labels of the earlier days.

    The size of a large label is the mean label of a label's unit: sum of squares over sum, 1 for labels 0 and 1.
    """
    rows, total, squares = (sum(values) for values in zip(*(profile.labels[task] for profile in earlier), strict=True))
    variance = max(squares / rows - (total / rows) ** 2, 0.0)
    total, squares = (sum(values) for values in zip((total, squares), today.labels[task][1:], strict=True))
    scale = squares / max(abs(total), math.sqrt(squares)) if squares else 0.0
    both = rows_of_both(today.labels[task][0], (profile.labels[task][0] for profile in earlier))
    return mean_noise(variance, scale, both, config.noise)


def _unseen(config: PreflightConfig, today: DayProfile, earlier: Sequence[DayProfile]) -> Iterator[Finding]:
    for name, sketch in today.ids.items():
        days = [profile.ids[name] for profile in earlier if name in profile.ids]
        share = sketch.unseen(days)
        shares = [found for place, day in enumerate(days) if (found := day.unseen(days[place + 1 :])) is not None]
        if share is None or not shares:
            continue
        usual = statistics.median(shares)
        ids = rows_of_both(sketch.effective_ids, (day.effective_ids for day in days[: len(shares)]))
        excused = max(config.spread * spread(shares), share_noise(usual, ids, config.noise))
        if share > usual + max(config.unseen_ids, excused):
            text = (
                f"{share:.1%} of the rows have an id of {name!r} that was on none of the last {len(days)} days, usual "
                f"is {usual:.1%} (daily.preflight.unseen_ids {config.unseen_ids:g})"
            )
            yield Finding(text, "daily.preflight.unseen_ids", f"feature {name!r}", share - usual)
