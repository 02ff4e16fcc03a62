"""Print every field of the records of a root as a Markdown page; like config_reference, its stdout is no JSON line."""

import argparse
import sys

from jobs.command import write_page

_HEAD = """# Records

Generated from the record classes by `make docs`; do not edit. A test holds it to them.

A record is one JSON file with a version and, under `sha256`, the checksum of its own content. A field without a value
is not written; "absent" stands for that. A record of an earlier version is read, one of a later version is refused.
[root.md](root.md) shows the place of each record. `<name>` stands for a name, `[]` for the entries of a list.

A checkpoint has two further files, in Arrow's file format. `cursor.arrow` has a row per unit that was stepped or is
quarantined: `unit`; `rows` stepped; `sum` modulo 2^64 of hash(unit, row number) over them; `quarantined`, the reason
why the unit could not be read. Its metadata has `in_space`, the rows in each task's sample space, and `held_out`.
`lanes.arrow` has a row per unit: `rank` and `unit`, rank by rank in the order of reading.
[audit.md](audit.md#read-a-cursor) shows how to read both.
"""


def page() -> str:
    """Return the whole page."""
    from pipeline.config.reference import reference
    from pipeline.lineage.ledger_entry import LedgerEntry
    from pipeline.lineage.records import Attempt, FoundDamage, Latest, LeaseRecord, Manifest, MoveByHand, Pin
    from pipeline.scoring.score import Scores
    from pipeline.scoring.written_predictions import AboutPredictions, PredictedDay
    from pipeline.storage.kept_results import KeptResult
    from pipeline.submission.job_record import JobRecord

    titles = {
        Manifest: "`manifest.json` of a checkpoint",
        Latest: "`LATEST`",
        Attempt: "An attempt",
        LedgerEntry: "An entry of the ledger",
        LeaseRecord: "`LEASE`",
        Pin: "A pin",
        FoundDamage: "`found_damage.json` of a checkpoint",
        MoveByHand: "A move by hand",
        KeptResult: "A kept result",
        AboutPredictions: "`_predictions.json` of predictions",
        PredictedDay: "`_days/<day>.json` of predictions",
        Scores: "`_scores.json` of ranked rows",
        JobRecord: "A submission",
    }
    return "\n".join([_HEAD, *(reference(record, title) for record, title in titles.items())])


def main() -> int:
    """Print the page."""
    argparse.ArgumentParser(prog="python -m jobs.record_reference", description=__doc__).parse_args()
    write_page(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
