"""Points of one run: values by name, from the progress that the command looks at twice a second."""

from collections import Counter

from pipeline.cluster.progress import Progress, TrainingFigures


class RunPoints:
    """Points of one run; rows of its parts add up, and a rate is that since the last point.

    Args:
        every_s: Least time in seconds between two points of a part.

    Attributes:
        rows: Rows of all parts so far.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._seen: Progress | None = None
        self._done: Counter[str] = Counter()  # rows of the parts before this one, all of them and by task
        self._rate_since = (0, 0.0, 0.0)
        self._written_at = float("-inf")
        self.rows = 0

    def values(self, progress: Progress, figures: TrainingFigures, now: float) -> dict[str, float]:
        """Return the values of a point; empty if there is nothing new, or the last point is recent.

        Args:
            progress: Newest progress.
            figures: Its figures.
            now: Monotonic time, in seconds.
        """
        seen, self._seen = self._seen, progress
        if progress == seen:
            return {}
        if seen is None or seen.training is None or seen.training.part != figures.part:
            self._begin_part(seen, figures)
        if progress.rows < progress.total and now - self._written_at < self._every_s:
            return {}
        self._written_at = now
        self.rows = self._done[""] + progress.rows
        return self._moved(progress, figures) | _saved(figures)

    def _begin_part(self, seen: Progress | None, figures: TrainingFigures) -> None:
        if seen is not None and seen.training is not None:
            self._done += Counter({"": seen.total} | seen.training.rows_in_space)
        self._rate_since, self._written_at = (figures.rows_before, 0.0, 0.0), float("-inf")

    def _moved(self, progress: Progress, figures: TrainingFigures) -> dict[str, float]:
        """Return what follows from the rows since the last point; empty without any."""
        rows, seconds, waited_s = self._rate_since
        self._rate_since = progress.rows, figures.seconds, figures.waited_s
        took = figures.seconds - seconds
        if progress.rows <= rows or took <= 0:
            return {}
        found = {f"loss/{task}": loss for task, loss in progress.losses.items()}
        found |= {f"rows_in_space/{task}": self._done[task] + own for task, own in figures.rows_in_space.items()}
        wait_share = min(1.0, (figures.waited_s - waited_s) / took)
        return found | {"rows_per_s": (progress.rows - rows) / took, "wait_share": wait_share}


def _saved(figures: TrainingFigures) -> dict[str, float]:
    found = {"save_s": figures.save_s, "save_stall_s": figures.save_stall_s}
    return {name: seconds for name, seconds in found.items() if seconds is not None}
