"""Submit a command as a job to this machine, a Ray cluster or Kubernetes; attach to it if it runs already."""

import argparse
import logging
import sys
from typing import TYPE_CHECKING, Any

from features.errors import ConfigError
from jobs.command import command, show
from jobs.submitted import job_of

if TYPE_CHECKING:  # `--help` answers without torch
    from pipeline.submission.job import Job
    from pipeline.submission.place import Place

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--where", choices=["local", "ray", "kubernetes"], default="local", help="(local)")
    parser.add_argument("--address", help="with ray: address of the dashboard, e.g. http://HOST:8265")
    parser.add_argument(
        "--code", choices=["upload", "image"], default="upload", help="with ray: this checkout (upload)"
    )
    parser.add_argument("--overlay", help="with kubernetes: folder of an overlay, rendered by kubectl")
    parser.add_argument("--template", help="with kubernetes, instead of --overlay: a file with the rendered RayJob")
    parser.add_argument("--namespace", help="with kubernetes; absent: that of the kubeconfig's context")
    parser.add_argument("--hbm-gb", type=float, help="memory of a GPU in 10^9 bytes, for the plan before a training")
    parser.add_argument("--ram-gb", type=float, help="memory of a host per worker in 10^9 bytes, for the same")
    parser.add_argument("--wait", action="store_true", help="follow the job, and end as it ends")
    parser.add_argument("--dry-run", action="store_true", help="with kubernetes: show what would be created")
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="-- COMMAND ...", help="e.g. -- daily --config C --day D"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Submit the job."""
    words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    if not words:
        raise ConfigError("no command: expected -- COMMAND ARGUMENTS, e.g. -- daily --config C --day D")
    job, path = job_of(words[0], words[1:])
    place = _place(arguments, job, path)
    from pipeline.submission.submit import ended, follow, start_or_attach

    if arguments.dry_run:
        return _dry_run(place, job)
    _plan(arguments, job, place)
    submission, result = start_or_attach(place, job)
    said = {"result": result, "submission": submission, "where": arguments.where}
    try:
        logger.info("%s: %s; %s", submission, result, place.advice(submission))
        if not arguments.wait:
            logger.info("the same command with --wait follows it")
            return said
        follow(place, submission, show)
    except KeyboardInterrupt:
        logger.info("%s goes on: the same command attaches to it again", submission)
        return said | {"result": "left running"}
    return said | {"result": "ended"} | ended(job.config.root, submission)


def _place(arguments: argparse.Namespace, job: "Job", path: Any) -> "Place":
    if arguments.where == "local":
        from pipeline.submission.local_place import LocalPlace

        return LocalPlace(job.config.root)
    if arguments.where == "ray":
        from pipeline.submission.ray_place import RayPlace

        if arguments.address is None:
            raise ConfigError("--where ray needs --address, e.g. http://HOST:8265")
        return RayPlace(arguments.address, upload=arguments.code == "upload")
    from pipeline.submission.kubernetes_api import KubernetesApi
    from pipeline.submission.kubernetes_place import KubernetesPlace
    from pipeline.submission.rayjob import template_of

    if arguments.wait and not job.config.root.startswith("s3://"):
        raise ConfigError(f"--wait reads how the job ended from root {job.config.root!r}, which is not here: use s3://")
    template = template_of(arguments.overlay, arguments.template)
    return KubernetesPlace(KubernetesApi(arguments.namespace), template, path)


def _dry_run(place: "Place", job: "Job") -> dict[str, Any]:
    """Show the objects of a submission as YAML, and return them as one list that kubectl takes."""
    import yaml

    from pipeline.submission.kubernetes_place import KubernetesPlace

    if not isinstance(place, KubernetesPlace):
        raise ConfigError("--dry-run is for --where kubernetes: elsewhere nothing is created")
    objects = place.objects(job, 1)
    show(yaml.safe_dump_all(objects, sort_keys=False, allow_unicode=True))
    return {"result": "dry run", "manifest": {"apiVersion": "v1", "kind": "List", "items": objects}}


def _plan(arguments: argparse.Namespace, job: "Job", place: "Place") -> None:
    """Refuse a training that cannot fit its workers, where their memory is known."""
    from pipeline.submission.kubernetes_place import KubernetesPlace

    if job.line is None:
        return
    ram = arguments.ram_gb
    if ram is None and isinstance(place, KubernetesPlace):
        ram = place.worker_gb(job.config.workers.most)
    memory = arguments.hbm_gb if job.config.workers.device == "cuda" else ram
    if memory is None:
        option = "--hbm-gb" if job.config.workers.device == "cuda" else "--ram-gb"
        logger.info("not planned, since %s is not given: whether the model fits is seen when it starts", option)
        return
    from pipeline.report.plan_command import Asked, plan_command

    asked = Asked(None, None, arguments.hbm_gb, ram, 8)
    plan_command(job.config, asked, show)


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
