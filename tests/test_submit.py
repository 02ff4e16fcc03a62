"""Submission of a job: its name, its words in a shell, its record, and the command on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scheduled_lines import template
from small_daily import config_of, day_of

from features.errors import ConfigError, DataError
from jobs.submitted import job_of
from pipeline.lineage.lease import lease
from pipeline.lineage.line import Line
from pipeline.submission.entry_words import decode, encode, is_plain
from pipeline.submission.job import Job, config_digest, parse_submission
from pipeline.submission.job_record import read_record, record_url
from pipeline.submission.local_place import LocalPlace
from pipeline.submission.ray_place import once_there
from pipeline.submission.rayjob import read_template, render
from pipeline.submission.rayjob_rules import problems
from pipeline.submission.submit import records_of, start_or_attach

PROJECT = Path(__file__).parents[1]
WORDS = st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12), max_size=6)


def job(root: Path, day: str = day_of(0), *, config: str = "a.yaml", **changes: Any) -> Job:
    of_root = config_of(root).model_copy(update=changes)
    return Job("daily", ("--config", config, "--day", day), of_root, of_root.line, (day,))


@given(WORDS)
def test_words_come_back(words: list[str]) -> None:
    """Catches an argument that is changed on its way, or that a shell could read."""
    plain, variables = encode(words)
    assert decode(plain, variables) == words
    assert all(is_plain(word) for word in plain)


def test_words_in_the_shells_of_kuberay_and_ray() -> None:
    """Catches a character that the script of the submitter pod or the shell of the head acts on."""
    words = ["--accept-anomaly", 'it\'s a $HOLIDAY; `rm` && "x" > y', "a b", "", "*", "~", "env:COUNTERPOISE_WORD_1"]
    plain, variables = encode(words)
    script = f"{sys.executable} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' {' '.join(plain)}"
    once = subprocess.run(["bash", "-ce", f"echo {' '.join(plain)}"], capture_output=True, text=True, check=True)
    assert once.stdout.split() == plain
    found = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert decode(json.loads(found.stdout), variables) == words


def test_variables_in_the_script_of_the_submitter_pod(tmp_path: Path) -> None:
    """Catches a value of an argument that the shell of KubeRay's submitter acts on: it stands between double quotes."""
    reason = 'costs $5 `echo HACK` $(echo SUB) "q" \\ $(HOME)'
    words = ("--config", "mine.yaml", "--day", day_of(0), "--accept-gate", reason)
    asked = Job("daily", words, config_of(tmp_path), "main", (day_of(0),))
    spec = render(template(tmp_path), asked, 1, None, None)["spec"]
    content = json.dumps(yaml.safe_load(spec["runtimeEnvYAML"]))
    fake = tmp_path / "ray"
    fake.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    fake.chmod(0o755)
    # As KubeRay writes it: JSON quoted as a string of Go, and the entrypoint without quotes.
    script = f"{fake} job submit --runtime-env-json {json.dumps(content)} -- {spec['entrypoint']}"
    done = subprocess.run(["bash", "-ce", script], capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    variables = json.loads(seen[3])["env_vars"]
    assert decode(seen[seen.index("--") + 4 :], variables)[: len(words)] == list(words)


def test_names_of_jobs(tmp_path: Path) -> None:
    """Catches two names for one daily job, one name for two, and names that Kubernetes refuses."""
    one = job(tmp_path)
    assert job(tmp_path, config="/elsewhere/b.yaml").name == one.name
    assert job(tmp_path, seed=9).name == one.name  # another config of the same day on the same line
    assert job(tmp_path, seed=9).digest != one.digest
    assert config_digest(one.config) != config_digest(job(tmp_path, seed=9).config)
    assert job(tmp_path, line="other").name != one.name
    assert job(tmp_path, day_of(1)).name != one.name
    assert job(tmp_path / "other").name != one.name
    fitted = Job("fit_features", ("--config", "a", "--days", "2026-03-01"), config_of(tmp_path), None)
    longest = Job("import_kuairand", ("--days", "x"), config_of(tmp_path), None)
    for named in (one, fitted, longest):
        assert len(named.submission(999)) <= 47
        assert parse_submission(named.submission(12)) == (named.name, 12)
        assert all(character.isalnum() or character == "-" for character in named.submission(1))
    assert Job("fit_features", ("--config", "a", "--days", "2026-03-02"), config_of(tmp_path), None).name != fitted.name


def test_the_rayjob_of_a_submission(tmp_path: Path) -> None:
    """Catches variables of the overlay that are lost, another day in the command, or a config that is not the job's."""
    words = ("--config", "mine.yaml", "--day", day_of(0), "--accept-gate", "a reason")
    asked = Job("daily", words, config_of(tmp_path), "main", (day_of(0),))
    before = template(tmp_path)
    rayjob = render(before, asked, 2, "run-config-own", Path("/etc/counterpoise/config.yaml"))
    assert before == template(tmp_path)
    assert rayjob["metadata"]["name"] == asked.submission(2)
    assert rayjob["spec"]["entrypoint"] == (
        f"python -m jobs.daily --config /etc/counterpoise/config.yaml --day {day_of(0)} --accept-gate "
        "env:COUNTERPOISE_WORD_5 --set ray.address=auto"
    )
    variables = read_template(json.dumps(rayjob), "x")["spec"]["runtimeEnvYAML"]
    assert "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S: '900'" in variables
    assert f"COUNTERPOISE_WORD_5: '{b'a reason'.hex()}'" in variables or b"a reason".hex() in variables
    assert record_url(str(tmp_path), asked.submission(2)) in variables
    volumes = rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
    assert [one["configMap"]["name"] for one in volumes if one["name"] == "run-config"] == ["run-config-own"]
    assert problems(rayjob) == []


def test_a_template_with_no_or_two_rayjobs() -> None:
    """Catches a job that is made of an arbitrary one of the objects of an overlay."""
    one = json.dumps({"kind": "RayJob", "metadata": {"name": "x"}})
    assert read_template(f"kind: ConfigMap\n---\n{one}", "x")["metadata"]["name"] == "x"
    for text in ("kind: ConfigMap", f"{one}\n---\n{one}", "a: [", ""):
        with pytest.raises(ConfigError, match=r"expected one|no YAML"):
            read_template(text, "x")


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("daly", [], r"'daly' is no command that can be submitted"),
        ("launch", ["--config", "x"], "no command that can be submitted"),
        ("daily", ["--config", "x", "--dya", "y"], r"--day.*see python -m jobs.daily --help"),
        ("daily", ["--config", "absent.yaml", "--day", "2026-03-01"], "absent.yaml"),
    ],
)
def test_a_job_that_cannot_be(command: str, words: list[str], said: str) -> None:
    """Catches a cluster that is asked for before the command line is known to be right."""
    with pytest.raises(ConfigError, match=said):
        job_of(command, words)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    text = (PROJECT / "jobs/configs/demo.yaml").read_text()
    file = tmp_path / "config.yaml"
    file.write_text(text.replace("root: runs/demo", f"root: {tmp_path / 'root'}"))
    assert str(tmp_path) in file.read_text()
    return file


def submit(*words: str, **environment: str) -> tuple[int, dict[str, Any], str]:
    """Run the command in a process of its own, and wait for its end."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs.submit", "--wait", "--", *words],
        cwd=PROJECT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    return done.returncode, json.loads(done.stdout), done.stderr


def test_a_job_of_this_machine(config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an exit code or a JSON line that is not the job's own."""
    root = str(tmp_path / "root")
    code, line, said = submit("history", "--config", str(config_file), TMPDIR=str(tmp_path))
    record = read_record(root, line["submission"])
    assert record is not None
    assert (code, line["exit_code"], record.exit_code) == (2, 2, 2), said
    assert line["line"]["job"] == "history"
    assert line["line"]["error"] in said  # the log was followed
    assert record.line == line["line"]
    again = start_or_attach(FoundAndNotStarted(root), job_of("history", ["--config", str(config_file)])[0])
    assert again == (line["submission"].replace("-r1", "-r2"), "submitted")


def test_a_living_job_is_attached_to(config_file: Path, tmp_path: Path) -> None:
    """Catches a second process for a job that lives, and a job that ends with the one who waits for it."""
    root = str(tmp_path / "root")
    words = ["daily", "--config", str(config_file), "--day", "2026-11-01"]
    with lease(Line.of(root, "main"), "the test", 120):  # the job waits for it, as long as its beat is awaited
        waiting = subprocess.Popen(
            [sys.executable, "-m", "jobs.submit", "--wait", "--", *words],
            cwd=PROJECT,
            env=os.environ | {"TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        name = job_of(words[0], words[1:])[0].submission(1)
        pid = await_begin(root, name, waiting.pid)
        place = LocalPlace(root)
        attached = start_or_attach(place, job_of(words[0], words[1:])[0])
        with pytest.raises(DataError, match=f"{name} runs with other arguments"):
            start_or_attach(place, job_of(words[0], [*words[1:], "--set", "seed=77"])[0])
        assert waiting.stderr is not None
        said = next(line for line in waiting.stderr if ": submitted; " in line)
        waiting.send_signal(signal.SIGINT)
        out, _ = waiting.communicate(timeout=400)
        assert attached == (name, "attached")
        assert (waiting.returncode, json.loads(out)["result"]) == (0, "left running")
        assert f"kill {pid} stops it" in said
        os.kill(pid, 0)  # it lives
        os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + 300
    while (seen := place.look(name)) is None or seen.phase != "ended":
        assert time.monotonic() < until
        time.sleep(0.1)
    assert start_or_attach(FoundAndNotStarted(root), job_of(words[0], words[1:])[0])[0].endswith("-r2")


class FoundAndNotStarted(LocalPlace):
    """This machine, without a start."""

    def start(self, job: Job, number: int) -> bool:
        return True


def await_begin(root: str, name: str, submitter: int) -> int:
    """Wait until the command of a submission has written its own record; return its process."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        record = read_record(root, name)
        if record is not None and record.process.pid not in {None, submitter}:
            return int(record.process.pid or 0)
        time.sleep(0.1)
    raise AssertionError(f"{name} has not begun")


def test_a_killed_command_has_no_end(config_file: Path, tmp_path: Path) -> None:
    """Catches a killed command that looks as if it ran for ever, or as if it had ended well."""
    root = tmp_path / "root"
    url = record_url(str(root), "history-r1")
    program = (
        "import sys, time; from jobs import history; from jobs.command import command;"
        "sys.exit(command(history.add_arguments, lambda _: time.sleep(600)))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "--config", str(config_file)],
        cwd=PROJECT,
        env=os.environ | {"COUNTERPOISE_JOB_RECORD": url},
    )
    while not (root / "jobs/history-r1.json").exists():
        time.sleep(0.1)
    process.kill()
    process.wait()
    record = records_of(str(root), "history")[1]
    assert (record.exit_code, record.ended, record.line) == (None, None, None)


def test_another_code_is_refused(config_file: Path, tmp_path: Path) -> None:
    """Catches a job that runs another code, Python or Ray than it was submitted with."""
    url = record_url(str(tmp_path / "root"), "history-r1")
    done = subprocess.run(
        [sys.executable, "-m", "jobs.history", "--config", str(config_file)],
        cwd=PROJECT,
        env=os.environ | {"COUNTERPOISE_JOB_RECORD": url, "COUNTERPOISE_JOB_CODE": "code 0, Python 3.9, Ray 1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert "this cluster has code" in error
    assert "submitted with code 0, Python 3.9, Ray 1" in error
    assert records_of(str(tmp_path / "root"), "history")[1].exit_code == 2


def test_a_cluster_whose_agents_are_late() -> None:
    """Catches a submission that fails while the head answers and no agent takes a job yet, and one that never ends."""
    answers = [RuntimeError("Request failed with status code 500: No available agent to submit job"), "job-7"]

    def submit() -> str:
        answer = answers.pop(0)
        if isinstance(answer, str):
            return answer
        raise answer

    assert once_there(submit) == "job-7"
    answers += [RuntimeError("No available agent"), "job-8"]
    with pytest.raises(ConfigError, match="no agent that takes jobs"):
        once_there(submit, within_s=-1)
    answers[0] = RuntimeError("the working_dir is too large")
    with pytest.raises(RuntimeError, match="too large"):
        once_there(submit)


class Taken(LocalPlace):
    """This machine, on which something else has the name of every submission."""

    def start(self, job: Job, number: int) -> bool:
        return False


def test_a_name_that_something_else_has(config_file: Path, tmp_path: Path) -> None:
    """Catches a submission that looks for ever at an object of its name that carries none of its labels."""
    job, _ = job_of("history", ["--config", str(config_file)])
    with pytest.raises(DataError, match="-r1 is there, and is no submission of this program"):
        start_or_attach(Taken(str(tmp_path / "root")), job)
