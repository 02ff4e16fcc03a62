"""Use of experts by gates over the days of a line, with the names of both, and the experts that have collapsed."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from pipeline.lineage.ledger_entry import LedgerEntry
from pipeline.report.line_records import LineRecords, NamedNetwork, Signature, signature
from pipeline.studies.gains import is_collapsed, named_gates

_OWN = re.compile(r"expert (\d+) of task (.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ExpertShare:
    """Mean weight of an expert in a gate, on the held-out rows of a day.

    Args:
        day: ISO date.
        gate: Name of the gate.
        expert: Name of the expert.
        owner: Task whose own expert it is; empty: it is shared.
        mean: The weight.
        num_experts: Number of experts that the gate may choose.
    """

    day: str
    gate: str
    expert: str
    owner: str
    mean: float
    num_experts: int

    @property
    def is_collapsed(self) -> bool:
        """True if the gate may use the expert and does not."""
        return is_collapsed(self.mean, self.num_experts)


@dataclass(frozen=True, slots=True)
class ExpertUse:
    """Use of experts over days.

    Args:
        shares: All shares, day by day.
        unnamed: Days whose network is not known any more, so that their experts have no names.
    """

    shares: tuple[ExpertShare, ...]
    unnamed: tuple[str, ...]

    @property
    def collapsed(self) -> list[ExpertShare]:
        """Collapsed experts of the newest day."""
        newest = max((one.day for one in self.shares), default="")
        return [one for one in self.shares if one.day == newest and one.is_collapsed]


Columns = list[tuple[str, int, str, tuple[str, ...], list[int]]]
"""For each gate its module and row, its name, and names and columns of its experts."""


def expert_use(records: LineRecords) -> ExpertUse:
    """Return the use of experts on the days of a line."""
    columns: dict[Signature, Columns | None] = {}
    shares, unnamed = [], []
    for entry in records.entries:
        if not entry.expert_use:
            continue
        key = signature(entry)
        if key not in columns:
            columns[key] = _columns(records.networks[key], entry)
        known = columns[key]
        if known is None:
            unnamed.append(entry.day)
        else:
            shares += _shares(entry, known)
    return ExpertUse(tuple(shares), tuple(unnamed))


def plain_experts(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the experts of a gate as a page names them, each with its task, if it is a task's own.

    Args:
        names: Names of the network's layout, such as `expert 0 of task vtr` and `shared expert 0`.
    """
    found = [_OWN.fullmatch(name) for name in names]
    counts = Counter(match[2] for match in found if match)
    return [
        (f"own expert {match[1] + ' ' if counts[match[2]] > 1 else ''}of {match[2]}", match[2]) if match else (name, "")
        for name, match in zip(names, found, strict=True)
    ]


def _columns(network: NamedNetwork, entry: LedgerEntry) -> Columns | None:
    """Name the columns of an entry's use; None if the network is not the one that was used."""
    found: Columns = []
    for module, rows in entry.expert_use.items():
        try:
            gates = named_gates(network.setting, network.towers, module)
        except (StopIteration, ValueError, ValidationError):  # no such module; a network for other tasks
            return None
        if len(gates) != len(rows) or max(max(chosen) for _, _, chosen in gates) >= len(rows[0]):
            return None
        found += [(module, row, gate, experts, chosen) for row, (gate, experts, chosen) in enumerate(gates)]
    return found


def _shares(entry: LedgerEntry, columns: Columns) -> Iterator[ExpertShare]:
    for module, row, gate, experts, chosen in columns:
        means = entry.expert_use[module][row]
        for (expert, owner), column in zip(plain_experts(experts), chosen, strict=True):
            yield ExpertShare(entry.day, gate, expert, owner, means[column], len(chosen))
