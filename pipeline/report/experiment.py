"""Report of an experiment: its cases in one Markdown file, each case with a page of its own."""

from collections.abc import Sequence
from dataclasses import replace

from pipeline.ingest.chosen_days import span
from pipeline.report.comparison import markdown_table, passes_of, signed, table_of
from pipeline.report.write_comparison import write_report
from pipeline.studies.experiment import CaseResult, ExperimentConfig, mean_gains


def experiment_markdown(experiment: ExperimentConfig, results: Sequence[CaseResult]) -> str:
    """Format one table per case, then the gains over all cases."""
    plan = results[0].case.plan
    lines = [f"# Experiment {experiment.name}", ""]
    trained = f"Trained on {span(plan.train_days)} in {passes_of(plan)}"
    common = f" All cases: {', '.join(f'`{one}`' for one in experiment.set)}." if experiment.set else ""
    lines += [f"{trained}, measured on {span(plan.test_days)}.{common}", ""]
    for result in results:
        differs = ", ".join(f"`{one}`" for one in result.case.differs) or "the base"
        lines += [
            f"## {result.case.name}",
            "",
            f"{differs}. {_seeds(result.case.plan.seeds)}",
            "",
            markdown_table(table_of(result.rows, _kinds(result))),
            "",
        ]
        lines += [f"* {row.model}: `{row.setting}`" for row in result.rows] + [""]
    gains = mean_gains(results)
    if gains:
        tasks = list(next(iter(gains.values())))
        head = ["model", *(f"gain {task}" for task in tasks)]
        cells = [[model, *(signed(found[task]) for task in tasks)] for model, found in gains.items()]
        lines += [f"## Mean gains over {len(results)} cases", "", markdown_table([head, *cells]), ""]
    return "\n".join(lines)


def _seeds(count: int) -> str:
    return "1 seed." if count == 1 else f"{count} seeds, mean ± standard deviation."


def write_experiment(experiment: ExperimentConfig, results: Sequence[CaseResult]) -> dict[str, str]:
    """Write each case's table and page, and the file (part.md for a subset of the cases); return the places of all."""
    storage = results[0].storage
    for result in results:
        name = result.case.name
        plan = replace(result.case.plan, name=f"{experiment.name}, {name}")
        write_report(storage.under(name), result.outcomes, result.rows, _kinds(result), plan)
    name = "table.md" if len(results) == len(experiment.cases) else "part.md"
    storage.write(name, experiment_markdown(experiment, results).encode())
    return {"markdown": f"{storage.url}/{name}"}


def _kinds(result: CaseResult) -> dict[str, str]:
    return {task.name: task.kind for task in result.case.config.log_schema.tasks}
