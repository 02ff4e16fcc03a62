"""What the ledger takes from the checkpoints of a finished day."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.lineage.ledger import config_hash
from pipeline.lineage.line import Line
from pipeline.lineage.stored_checkpoint import Manifest


def of_run(line: Line, finished: Manifest) -> Iterator[Manifest]:
    """The finished parts of a run, the newest first."""
    return itertools.takewhile(lambda m: m.content["run"] == finished.content["run"], line.lineage(finished))


def quarantined(manifests: Sequence[Manifest]) -> dict[str, str]:
    """Units that could not be read, and why."""
    found = (manifest.content["cursor"]["quarantined"] for manifest in manifests)
    return {key: reason for units in found for key, reason in units.items()}


def described(line: Line, manifest: Manifest, run: str) -> dict[str, Any]:
    """What the ledger takes from a finished day's checkpoint, and from those of earlier days' late labels before it."""
    content = manifest.content
    sums = [int(total) for _, total in content["cursor"]["units"].values()]
    taken = (
        "rows",
        "held_out",
        "rows_in_space",
        "schema_fingerprint",
        "step",
        "days_done",
        "loss_weights",
        "pass",
        "new_ids",
    )
    return {key: content[key] for key in taken} | {
        "day": manifest.day,
        "checkpoint": manifest.checkpoint,
        "run": run,
        "attempt": content["attempt"],
        "logs": content["files_of_log"],
        "quarantined": content["cursor"]["quarantined"],
        "audit": {"units": len(sums), "rows": content["rows"], "sum": f"{sum(sums) % 2**64:016x}"},
        "config": config_hash(content["config"]),
        "train_seconds": content["seconds"],
        "late": {
            part.content["log_day"]: _late(part) for part in of_run(line, manifest) if _is_late(part, manifest.day)
        },
    }


def _is_late(part: Manifest, day: str) -> bool:
    return part.day == day and part.content["log_day"] != day


def _late(part: Manifest) -> dict[str, Any]:
    return {key: part.content[key] for key in ("tasks", "rows", "rows_in_space")} | {
        "logs": part.content["files_of_log"]
    }
