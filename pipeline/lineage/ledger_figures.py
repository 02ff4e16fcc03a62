"""Figures of an entry of the ledger, by the names of the live view."""

from pipeline.lineage.ledger_entry import LedgerEntry, Metrics


def ledger_figures(entry: LedgerEntry) -> dict[str, float]:
    """Return the figures of an entry by name: `before/<task>/<metric>`, `new_ids/<table>/<figure>` and so on."""
    holdout = entry.holdout
    found = _metrics("before", entry.before)
    found |= _metrics("holdout", holdout.new if holdout else None)
    found |= _metrics("holdout_parent", holdout.parent if holdout else None)
    found |= {f"rows_in_space/{task}": rows for task, rows in entry.rows_in_space.items()}
    found |= {f"loss_weight/{task}": weight for task, weight in entry.loss_weights.items()}
    found |= {f"new_ids/{table}/{name}": count for table, own in entry.new_ids.items() for name, count in own.items()}
    single = {
        "rows": entry.rows,
        "held_out": entry.held_out,
        "train_s": entry.train_seconds,
        "skipped": _skipped(entry),
    }
    if entry.gate is not None:  # a published day with findings was accepted by a person
        single["gate_findings"] = len(entry.gate.problems)
    return {name: float(value) for name, value in (found | single).items() if value is not None}


def _skipped(entry: LedgerEntry) -> int:
    return int(entry.skipped is not None)


def _metrics(name: str, metrics: Metrics | None) -> dict[str, float | None]:
    """Return the metrics of all tasks that are numbers."""
    return {
        f"{name}/{task}/{metric}": value
        for task, own in (metrics or {}).items()
        for metric, value in own.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
