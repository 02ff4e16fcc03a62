"""Examples of the page on Kubernetes for Airflow and Argo, read by the launcher's own parser."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
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


def argo() -> dict[str, Any]:
    workflow = yaml.safe_load(block("yaml"))
    spec = workflow["spec"]["workflowSpec"]
    (template,) = [one for one in spec["templates"] if one["name"] == spec["entrypoint"]]
    assert workflow["spec"]["concurrencyPolicy"] == "Forbid"
    return template["container"] | {"service_account_name": spec["serviceAccountName"]}


@pytest.mark.parametrize("scheduler", ["airflow", "argo"])
def test_the_command_is_the_launcher_s(scheduler: str) -> None:
    """Catches an example whose options were renamed, or whose files are elsewhere than in the CronJob."""
    given = airflow() if scheduler == "airflow" else argo()
    line = [*given.get("cmds", given.get("command", [])), *given.get("arguments", given.get("args", []))]
    asked = parse_line(line)
    (cron_job,) = of_kind(render("overlays/prod-cpu"), "CronJob")
    ours = parse_line(next(command_lines(cron_job)))
    assert (asked.config, asked.template) == (ours.config, ours.template)
    pod = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert given["service_account_name"] == pod["serviceAccountName"]
