"""List the commands: `python -m jobs`."""

import ast
import difflib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

_NOT_COMMANDS = {"__init__", "__main__", "command", "submitted"}
_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the names of the commands, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.py") if path.stem not in _NOT_COMMANDS)


def main() -> int:
    """Print each command with the first line of its docstring; refuse anything else."""
    from jobs.command import write_page

    if sys.argv[1:] not in ([], ["-h"], ["--help"]):
        name, *rest = sys.argv[1:]
        return refuse(name, rest)
    lines = ["usage: python -m jobs.NAME --help", ""]
    for name in names():
        text = ast.get_docstring(ast.parse((_FOLDER / f"{name}.py").read_text())) or ""
        lines.append(f"  {name:18}{text.splitlines()[0]}")
    write_page("\n".join(lines) + "\n")
    return 0


def refuse(name: str, arguments: Sequence[str]) -> int:
    """End a command that was called by a wrong name.

    Args:
        name: The name, or the first argument of `python -m jobs`.
        arguments: The arguments after it.

    Returns:
        The exit code.
    """
    from jobs.command import refuse_arguments

    known = names()
    near = [name] if name in known else difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    meant = shlex.join(["python", "-m", f"jobs.{near[0]}", *arguments]) if near else ""
    if name.startswith("-"):
        options = shlex.join([name, *arguments])
        return refuse_arguments("jobs", f"expected python -m jobs.NAME {options}: python -m jobs lists the commands")
    if name in known:
        return refuse_arguments(name, f"a command is a module of its own: run {meant}")
    advice = f"did you mean {meant}?" if near else "python -m jobs lists them"
    return refuse_arguments(name, f"there is no command {name!r}: {advice}")


if __name__ == "__main__":
    sys.exit(main())
