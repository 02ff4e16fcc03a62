"""Print every key of a configuration as a Markdown page; the one command whose stdout is no JSON line."""

import argparse
import sys

from jobs.command import write_page

_HEAD = """# Configuration

Generated from the config classes by `make docs`; do not edit. A test holds it to them.

A configuration is one YAML file. A key that is not listed here is an error, and so is a wrong value: the command ends
with exit code 2 before a cluster is asked for, naming the dotted path and the nearest valid name. `--set KEY=VALUE`
replaces one setting from the command line, e.g. `--set ingest.batch_size=512`; it reaches sections, not the entries of
a list. "absent" means that the key may be left out, and the effect is said beside it. `[]` in a heading stands for
the entries of a list, `<name>` for a name of your choice.

Examples that run: [`jobs/configs/demo.yaml`](../jobs/configs/demo.yaml) and
[`jobs/configs/demo_world.yaml`](../jobs/configs/demo_world.yaml).
"""


def page() -> str:
    """Return the whole page."""
    from features.synthetic.world import SyntheticConfig
    from pipeline.config.project import Config
    from pipeline.config.reference import reference

    project = reference(Config, "A project, the file of `--config`")
    world = reference(SyntheticConfig, "A synthetic world, the file of `--world`")
    return "\n".join([_HEAD, project, world])


def main() -> int:
    """Print the page."""
    argparse.ArgumentParser(prog="python -m jobs.config_reference", description=__doc__).parse_args()
    write_page(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
