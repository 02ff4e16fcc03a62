"""Job: a command of `jobs/` with its arguments, under a name that is the same however often it is submitted."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.storage.files import Storage

if TYPE_CHECKING:  # a record of a job is written without torch
    from pipeline.config.project import Config

FOLDER = "jobs"  # below the root
_HEX = 8


@dataclass(frozen=True, slots=True)
class Job:
    """A command with its arguments.

    Args:
        command: Name of the command, e.g. `daily`.
        words: Arguments after the name, in order.
        config: The configuration that `--config` and `--set` give.
        line: Line that the job trains; None: it trains none.
        days: ISO dates in the order of the arguments; empty: the job is about no single days.
    """

    command: str
    words: tuple[str, ...]
    config: "Config"
    line: str | None
    days: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits of the checksum of the arguments and the configuration."""
        return _digest(self._what())

    @property
    def chain(self) -> str:
        """Eight hexadecimal digits for what runs one at a time: a line of a root, or a job that trains none."""
        if self.line is None:
            return self.digest
        return chain_of(self.config, self.line)

    @property
    def name(self) -> str:
        """Name of the job: letters, digits and hyphens, at most 40 characters.

        A daily job of one day is named after its day and its line, so two submissions meet although their
        configurations differ. All other jobs have the checksum of their arguments and their configuration.
        """
        command = self.command.replace("_", "-")
        if self.is_daily_day:
            return daily_name(self.chain, self.days[0])
        return f"{command}-{self.digest}"

    @property
    def is_daily_day(self) -> bool:
        """True for the daily job of one day."""
        return self.command == "daily" and self.line is not None and len(self.days) == 1

    def submission(self, number: int) -> str:
        """Return the name of a submission of the job, at most 44 characters.

        Args:
            number: Number of the submission, from 1.
        """
        return f"{self.name}-r{number}"

    def with_config(self, path: str | None) -> list[str]:
        """Return the arguments with another path of the configuration; None: with the same."""
        words = list(self.words)
        for place, word in enumerate(words):
            if path is not None and word == "--config":
                words[place + 1] = path
            elif path is not None and word.startswith("--config="):
                words[place] = f"--config={path}"
        return words

    def _what(self) -> list[str]:
        """Return the arguments and the configuration, without its path, which differs from machine to machine."""
        return [self.command, *self.with_config(""), config_digest(self.config)]


def config_digest(config: "Config") -> str:
    """Return eight hexadecimal digits of the checksum of a configuration, without the address of its Ray."""
    content = config.model_dump(mode="json")
    content["ray"].pop("address")
    return _digest(content)


def daily_name(chain: str, day: str) -> str:
    """Return the name of a line's daily job of one day; the line is given as `Job.chain`."""
    return f"daily-{day.replace('-', '')}-{chain}"


def chain_of(config: "Config", line: str) -> str:
    """Return the `chain` of the jobs of a line: digits of the checksum of the root's place and the line's name."""
    return _digest([Storage(config.root).url, line])


def parse_submission(name: str) -> tuple[str, int] | None:
    """Return the job's name and the number of a submission's name; None for another name."""
    found = re.fullmatch(r"(.+)-r([1-9][0-9]*)", name)
    return (found[1], int(found[2])) if found else None


def _digest(content: Sequence[str] | dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_HEX]
