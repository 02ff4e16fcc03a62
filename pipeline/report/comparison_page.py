"""Page of a comparison: the table, the verdicts, the seesaw of every pair of tasks, slices, and the use of experts."""

from collections.abc import Iterator, Sequence

from features.figure import figure
from pipeline.report.charts import shares
from pipeline.report.comparison import SLICES_INTRO, plan_text, slice_cells, table_of
from pipeline.report.expert_use import plain_experts
from pipeline.report.measured_sections import seesaw_charts
from pipeline.report.page import Page, Section, Table
from pipeline.studies.comparison import ComparisonPlan, Outcome
from pipeline.studies.gains import ModelRow, UsedExperts, gate_use, is_collapsed
from pipeline.studies.slice_gains import slice_gains
from pipeline.studies.verdicts import verdicts


def comparison_page(
    outcomes: Sequence[Outcome], rows: Sequence[ModelRow], kinds: dict[str, str], plan: ComparisonPlan
) -> Page:
    """Return the page.

    Args:
        outcomes: Models, each trained with one seed.
        rows: The models over all seeds.
        kinds: Kind of each task, by name.
        plan: Plan of the comparison.
    """
    head, *cells = table_of(rows, kinds)
    table = Table(head, cells, frozenset(range(1, len(head))))
    said = tuple(verdicts(rows, plan.least_gain).values())
    settings = Table(("model", "network"), [(row.model, str(row.setting)) for row in rows])
    return Page(
        title=f"Comparison {plan.name}",
        lead=plan_text(plan),
        sections=[
            Section(name="models", title="Models", notes=said, tables=[table]),
            _seesaw(rows),
            *_slice_sections(outcomes, plan),
            *_expert_sections(outcomes),
            Section(name="settings", title="Settings", tables=[settings]),
        ],
    )


def _seesaw(rows: Sequence[ModelRow]) -> Section:
    charts = seesaw_charts({row.model: row.gains for row in rows if row.gains is not None})
    absent = "No model has gains over single-task models: jobs.compare --models single,... trains these too."
    intro = "Gains over the single-task models; the lines are one standard deviation over the seeds."
    return Section(
        name="seesaw",
        title="The seesaw",
        intro=intro,
        charts=charts,
        absent=absent,
    )


def _slice_sections(outcomes: Sequence[Outcome], plan: ComparisonPlan) -> Iterator[Section]:
    """Yield the gains by each declared slice."""
    for number, (name, gains) in enumerate(slice_gains(outcomes, plan).items()):
        head, *cells = slice_cells(name, gains)
        table = Table(head, cells, frozenset(range(2, len(head) - 1)))
        yield Section(name=f"slices-{number}", title=f"Gains by {name}", intro=SLICES_INTRO, tables=[table])


def _expert_sections(outcomes: Sequence[Outcome]) -> Iterator[Section]:
    """Yield the use of experts of each model's first seed."""
    first = {outcome.model: outcome for outcome in reversed(outcomes) if outcome.expert_use}
    for number, outcome in enumerate(reversed(first.values())):
        used = gate_use(outcome)
        yield Section(
            name=f"experts-{number}",
            title=f"Use of experts: {outcome.model}, seed {outcome.seed}",
            intro="Mean and standard deviation of a gate's weights over the measured rows.",
            alarms=[text for gate in used for text in _collapsed(gate)],
            charts=[shares(gate.gate.capitalize(), _rows(gate)) for gate in used],
        )


def _collapsed(gate: UsedExperts) -> Iterator[str]:
    for (expert, _), mean in zip(plain_experts(gate.experts), gate.means, strict=True):
        if is_collapsed(mean, len(gate.experts)):
            yield f"The {expert} has collapsed in the {gate.gate}: its weight is {figure(mean)} of 1."


def _rows(gate: UsedExperts) -> list[dict[str, object]]:
    names = [name for name, _ in plain_experts(gate.experts)]
    return [
        {"name": name, "mean": mean, "deviation": deviation, "collapsed": is_collapsed(mean, len(names))}
        for name, mean, deviation in zip(names, gate.means, gate.deviations, strict=True)
    ]
