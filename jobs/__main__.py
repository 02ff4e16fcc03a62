"""List the commands: `python -m jobs`."""

import ast
import sys
from pathlib import Path

_NOT_COMMANDS = {"__init__", "__main__", "command"}


def main() -> int:
    """Print each command with the first line of its docstring."""
    lines = ["usage: python -m jobs.NAME --help", ""]
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in _NOT_COMMANDS:
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            lines.append(f"  {path.stem:18}{text.splitlines()[0]}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
