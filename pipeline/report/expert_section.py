"""Section of the use of experts: a chart for each gate, over the days of a line."""

from collections.abc import Sequence
from itertools import count

from pipeline.report.charts import Chart, Palette, over_days
from pipeline.report.expert_use import ExpertShare, ExpertUse
from pipeline.report.page import Section, plural

_MOST_POINTS = 8_000  # of all gates together, so that a page has a bounded size
_DASHED = 1


def expert_section(use: ExpertUse, tasks: Palette) -> Section:
    """Return the section.

    Args:
        use: Use of experts.
        tasks: Colours of the tasks.
    """
    if not use.shares and not use.unnamed:
        absent = (
            "No day has the use of experts: jobs.daily measures it, where rows are held out and the model has gates."
        )
        return Section(name="experts", title="Experts", absent=absent)
    drawn = _thinned(use.shares)
    by_gate: dict[str, list[ExpertShare]] = {}
    for share in drawn:
        by_gate.setdefault(share.gate, []).append(share)
    notes = []
    if left := len({one.day for one in use.shares}) - len({one.day for one in drawn}):
        notes.append(f"{plural(left, 'day')} in between are not drawn; --days draws a stretch in full.")
    if use.unnamed:
        notes.append(f"{plural(len(use.unnamed), 'day')} of another network are left out: its checkpoint is gone.")
    return Section(
        name="experts",
        title="Experts",
        intro=(
            "Mean weight of each expert in a gate, on the held-out rows of a day. Solid: own experts of a task, in its "
            "colour. Dashed: shared experts. An expert has collapsed if a gate that may use it gives it less than 1 %, "
            "or of more than ten experts less than a tenth of an equal share, or exactly 0."
        ),
        alarms=[
            f"The {one.expert} has collapsed in the {one.gate}: its weight is {one.mean:.4f} of 1."
            for one in use.collapsed
        ],
        notes=notes,
        charts=[_gate_chart(gate, shares, tasks) for gate, shares in by_gate.items()],
    )


def _gate_chart(gate: str, shares: Sequence[ExpertShare], tasks: Palette) -> Chart:
    rows = [{"day": one.day, "name": one.expert, "value": one.mean} for one in shares]
    owners = {one.expert: one.owner for one in shares}
    return over_days(gate.capitalize(), rows, _palette(owners, tasks), "mean weight (of 1)", zero=True, share=True)


def _palette(owners: dict[str, str], tasks: Palette) -> Palette:
    """Give own experts the colours of their tasks, and shared ones further colours and dashes.

    Args:
        owners: The task of each expert; empty: it is shared.
        tasks: Colours of the tasks.
    """
    places: dict[str, tuple[int, int]] = {}
    further, own = count(len(tasks.places)), {owner: count() for owner in owners.values()}
    for expert, owner in owners.items():
        if owner in tasks.places:
            number = next(own[owner])
            places[expert] = (tasks.places[owner][0], number + (number >= _DASHED))
        else:
            places[expert] = (next(further), _DASHED)
    return Palette(places)


def _thinned(shares: Sequence[ExpertShare]) -> list[ExpertShare]:
    """Return the shares of every n-th day, the newest included."""
    step = -(-len(shares) // _MOST_POINTS) or 1
    kept = set(sorted({share.day for share in shares}, reverse=True)[::step])
    return [share for share in shares if share.day in kept]
