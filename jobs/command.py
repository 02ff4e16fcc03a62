"""Frame of every command: one JSON line on stdout, its own lines on stderr, an exit code to act upon.

The output of Ray, FBGEMM and the workers goes to a log file, or with `--verbose` to stderr too. The file is kept, and
named, when a command fails (1); a refusal says all in its own line.

0 done, nothing to do, or waiting; 1 failed; 2 bad arguments or config; 3 refused by a gate or a check. A retry can
help only after 1. No JSON line at all means that the command crashed.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from features.errors import NO_PLACE, ConfigError, DataError, Interrupted
from features.full_disk import with_advice
from pipeline.cluster.processes import process_age
from pipeline.submission.entry_words import CONFIG_VARIABLE, RECORD_VARIABLE, decode

if TYPE_CHECKING:  # `--help` answers without torch
    from pipeline.config.project import Config
    from pipeline.submission.job_record import Recorder

logger = logging.getLogger(__name__)

DONE, FAILED, BAD_ARGUMENTS, REFUSED = 0, 1, 2, 3

Run = Callable[[argparse.Namespace], dict[str, Any]]


def command(add_arguments: Callable[[argparse.ArgumentParser], None], run: Run) -> int:
    """Run a command.

    Args:
        add_arguments: Function that declares the arguments.
        run: Function that does the work and returns the figures of the JSON line.

    Returns:
        The exit code.
    """
    module = sys.modules["__main__"]
    name = (module.__spec__.name if module.__spec__ else "jobs").removeprefix("jobs.")
    parser = Parser(prog=f"python -m jobs.{name}", description=module.__doc__)
    add_arguments(parser)
    parser.add_argument("--verbose", action="store_true", help="show the output of Ray, FBGEMM and the workers too")
    _open_missing()
    try:
        arguments, wrong = parser.parse_args(decode(sys.argv[1:])), None
    except ConfigError as error:
        arguments, wrong = argparse.Namespace(verbose=False), error
    from pipeline.cluster.console import console  # after `--help` has ended

    stdout = os.dup(1)
    console.open(name, verbose=arguments.verbose)
    os.dup2(2, 1)  # stdout is for the JSON line alone
    recorder = _recorder()

    def begin_and_run(arguments: argparse.Namespace) -> dict[str, Any]:
        if recorder:
            recorder.begin(name)
        if wrong is not None:
            raise wrong
        return run(arguments)

    try:
        result, code = outcome(begin_and_run, arguments)
    except BaseException:
        console.restore()
        raise
    if log := console.close_log(keep=code == FAILED):
        logger.error("the output of Ray and of the workers is in %s", log)
        result |= {"log": log}
    line = {"job": name, "exit_code": code, **result, "seconds": process_age()}
    if recorder:
        recorder.end(code, line)
    _write_line(stdout, line)
    return code


def _recorder() -> "Recorder | None":
    """Return the writer of this process' record, if a submitter asked for one."""
    if RECORD_VARIABLE not in os.environ:
        return None
    from pipeline.lineage.lease import this_process
    from pipeline.submission.job_record import Recorder

    return Recorder(os.environ.pop(RECORD_VARIABLE), this_process())  # a command that this one starts is another job


def refuse_arguments(name: str, message: str) -> int:
    """End a command that cannot begin: one line on stderr, and the JSON line.

    Args:
        name: Name of the command.
        message: The error.

    Returns:
        The exit code.
    """
    from pipeline.cluster.console import FORMAT

    logging.basicConfig(format=FORMAT)
    _write_line(1, {"job": name, "exit_code": BAD_ARGUMENTS, **_failed(ConfigError(message)), "seconds": process_age()})
    return BAD_ARGUMENTS


def write_page(text: str) -> None:
    """Write a whole page to stdout; a reader who has gone, as after `| head -1`, is no error."""
    _open_missing()
    data = memoryview(text.encode())
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(1, data) :]


def _write_line(descriptor: int, line: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # nobody reads stdout any more
        os.write(descriptor, (json.dumps(line) + "\n").encode())


def show(text: str) -> None:
    """Show a table, or other lines of a command's result, on stderr."""
    from pipeline.cluster.console import console

    console.write(text)


def _open_missing() -> None:
    """Open a stream that was closed before the start, so that no later file becomes stdout or stderr."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - for the rest of the process
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


class Parser(argparse.ArgumentParser):
    """Argument parser that reports its errors like all other errors."""

    def error(self, message: str) -> NoReturn:
        """Raise a ConfigError."""
        raise ConfigError(f"{message}: see {self.prog} --help")


def outcome(run: Run, arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """Do the work; return the figures, or the error in one line, and the exit code; a refusal may have figures too."""
    try:
        result = run(arguments)
        return result, result.pop("exit_code", DONE)  # that of a job that was waited for
    except ConfigError as error:
        return getattr(error, "figures", {}) | _failed(error), BAD_ARGUMENTS
    except DataError as error:
        return getattr(error, "figures", {}) | _failed(error), REFUSED
    except Interrupted as error:
        return _failed(error), FAILED
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C; Ray turns a SIGTERM into SystemExit
        return _failed(RuntimeError("interrupted: start the same command again")), FAILED
    except Exception as error:  # noqa: BLE001 - the one place where everything ends
        return _unexpected(error)


def _unexpected(error: Exception) -> tuple[dict[str, Any], int]:
    # An S3 server's refusal names no file: credentials may be renewed.
    if isinstance(error, OSError) and error.errno in NO_PLACE and error.filename is not None:
        text = f"{error.filename} cannot be read or written ({error.strerror}): give another place, or the right to it"
        return _failed(ConfigError(text)), BAD_ARGUMENTS
    logger.debug("failed", exc_info=True)
    if os.environ.get("COUNTERPOISE_TRACEBACK"):
        raise error
    return _failed(RuntimeError(f"{type(error).__name__}: {error}")), FAILED


def _failed(error: BaseException) -> dict[str, Any]:
    from pipeline.cluster.console import without_colours

    text = with_advice(" ".join(without_colours(str(error)).split())) or type(error).__name__
    logger.error(text)
    return {"error": text}


def add_config(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of every command that reads a configuration."""
    parser.add_argument("--config", required=True, help="a YAML file, e.g. jobs/configs/demo.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace one setting, dotted")


def read_config(arguments: argparse.Namespace) -> "Config":
    """Read the configuration that the arguments name; a command calls it before it imports what is slow to import.

    Raises:
        ConfigError: One line for each thing that is wrong, with its dotted path.
    """
    from pipeline.config.load import load_config

    config = load_config(arguments.config, arguments.set)
    expected = os.environ.pop(CONFIG_VARIABLE, None)  # a command that this one starts may have another
    if expected is not None:
        _check_config(config, expected)
    return config


def _check_config(config: "Config", expected: str) -> None:
    from pipeline.submission.job import config_digest

    if (here := config_digest(config)) != expected:
        raise ConfigError(
            f"the configuration here is {here}, the job was submitted with {expected}: after a change of an overlay, "
            "make manifests and apply it again"
        )


def add_skip_missing(parser: argparse.ArgumentParser) -> None:
    """Declare the argument that leaves out days without a log."""
    parser.add_argument("--skip-missing", action="store_true", help="leave out days without a log, and name them")


def asked_days(
    config: "Config", arguments: argparse.Namespace, *names: str
) -> tuple[list[list[str]], dict[str, list[str]]]:
    """Return the days of arguments, with `--skip-missing` those that have a log.

    Args:
        config: The project's configuration.
        arguments: Arguments of a command that declares `--skip-missing`.
        names: Arguments that hold days; an absent one has none.

    Returns:
        The ISO dates of each argument, and the part of the command's result that names the days left out.

    Raises:
        ConfigError: An argument holds no days.
        DataError: No day of an argument has a log.
    """
    from pipeline.ingest.chosen_days import without_missing
    from pipeline.ingest.units import parse_days
    from pipeline.storage.files import Storage

    asked = [parse_days(text) if (text := getattr(arguments, name)) else [] for name in names]
    if not arguments.skip_missing:
        return asked, {}
    logs = Storage(config.logs.path)
    found = [without_missing(logs, days) if days else ([], []) for days in asked]
    left_out = sorted({day for _, missing in found for day in missing})
    if left_out:
        logger.warning("left out, since they have no log: %s", ", ".join(left_out))
    return [kept for kept, _ in found], {"left_out": left_out}
