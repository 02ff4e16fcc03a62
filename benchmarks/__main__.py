"""Run benchmarks: `python -m benchmarks [NAME ...] [--quick] [--json FILE]`."""

import argparse
import importlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

NAMES = (
    "ingest_cpu",
    "ingest_s3",
    "head_gemm",
    "memory",
    "data_wait",
    "save_stall",
    "determinism",
    "vocabulary",
    "vocabulary_quality",
    "daily_kuairand",
    "together",
    "paced_loop",
    "startup_cpu",
    "ingest_units",
    "plan_scale",
    "backfill",
    "metric_merge",
    "sparse_step",
    "loss_overhead",
    "step_overhead",
    "scaling",
    "starts",
    "soak",
    "end_to_end",
    "driver_memory",
)


def main() -> int:
    """Run the named benchmarks, or all, and print the result of each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; absent: all")
    parser.add_argument("--quick", action="store_true", help="smaller, and fewer turns")
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(NAMES)
    if unknown:
        parser.error(f"there is no benchmark {sorted(unknown)}, those are {list(NAMES)}")
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found: dict[str, Any] = {}
    for name in arguments.names or NAMES:
        module = importlib.import_module(f"benchmarks.{name}")
        found[name] = module.run(arguments.quick)
        title = (module.__doc__ or "").splitlines()[0]
        sys.stdout.write(f"{name}: {title}\n{json.dumps(found[name], indent=2)}\n")
        sys.stdout.flush()
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
