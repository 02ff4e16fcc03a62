"""Examples of the page on Kubernetes for Airflow and Argo, read by the launcher's own parser."""

import ast
import re
from pathlib import Path
from typing import Any

import yaml
from manifests import command_lines, of_kind, parse_line, render

PAGE = (Path(__file__).parents[1] / "docs/kubernetes.md").read_text()


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found


def airflow() -> dict[str, Any]:
    """The arguments of the operator, by name."""
    calls = [node for node in ast.walk(ast.parse(block("python"))) if isinstance(node, ast.Call)]
    (operator,) = [call for call in calls if ast.unparse(call.func) == "KubernetesPodOperator"]
    return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in operator.keywords}


def test_the_command_is_the_launcher_s() -> None:
    """Catches an example whose options were renamed, or whose files are elsewhere than in the CronJob."""
    given = airflow()
    asked = parse_line([*given["cmds"], *given["arguments"]])
    (cron_job,) = of_kind(render("overlays/prod-cpu"), "CronJob")
    ours = parse_line(next(command_lines(cron_job)))
    assert (asked.config, asked.template) == (ours.config, ours.template)
    assert given["namespace"] == cron_job["metadata"]["namespace"]


def test_the_workflow_creates_the_launcher_s_pod() -> None:
    """Catches a workflow whose parts do not name one another, or that runs two ticks at once."""
    workflow = yaml.safe_load(block("yaml"))
    spec = workflow["spec"]["workflowSpec"]
    (template,) = [one for one in spec["templates"] if one["name"] == spec["entrypoint"]]
    assert template["resource"]["action"] == "create"
    assert workflow["spec"]["concurrencyPolicy"] == "Forbid"


def test_the_pod_of_the_cron_job_stands_alone() -> None:
    """Catches a command of the page that reads the CronJob at a place where its pod is not."""
    (cron_job,) = of_kind(render("overlays/prod-cpu"), "CronJob")
    paths = set(re.findall(r"\.spec\.jobTemplate[.a-zA-Z]*", PAGE))
    assert paths == {".spec.jobTemplate.spec.template.metadata", ".spec.jobTemplate.spec.template.spec"}
    for path in paths:
        found = cron_job
        for key in path.strip(".").split("."):
            found = found[key]
        assert found
