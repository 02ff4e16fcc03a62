"""Wording of docstrings: the imperative for functions, a noun phrase for classes, and no sentence that is a riddle."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("features", "models", "pipeline", "jobs", "benchmarks")

_RIDDLES = "What|Of|By|Whether|Whose|Which|Where|Why|How|That|As of"
# A sentence begins with the text, with an entry of Args or a list, or after a sentence's end.
_SENTENCE = re.compile(rf"(?:\A|[.!?]\s+|\n\s*\n\s*|^\s*(?:\* )?`?\w+`?: )({_RIDDLES})\b", re.MULTILINE)
_NOUN = re.compile(r"(?:The|A|An|It|All|Each|Every|Some|One|No|Those|These|This|Who|Whom|When|If)\b")
_VERB = re.compile(
    r"(?:Checks?|Computes?|Concatenates?|Draws?|Encodes?|Gives?|Holds?|Keeps?|Makes?|Maps?|Reads?|Refuses?|Replaces?|"
    r"Returns?|Runs?|Says?|Takes?|Tells?|Trains?|Weighs?|Writes?|Yields?) "
)


def docstrings(path: Path) -> Iterator[tuple[int, ast.AST, str]]:
    """Line, owner and text of every docstring of a file, texts below an assignment included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for place, statement in enumerate(node.body):
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                yield statement.lineno, statement if place else node, str(statement.value.value)


def problems(node: ast.AST, text: str) -> list[str]:
    """Objections to one docstring."""
    found = [f"a sentence begins with {word}" for word in _SENTENCE.findall(text)]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _NOUN.match(text) and not _is_property(node):
        found.append("expected a verb in the imperative")
    if isinstance(node, ast.ClassDef) and _VERB.match(text):
        found.append("expected a noun phrase")
    return found


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


@pytest.mark.parametrize("room", ROOMS)
def test_docstrings_are_plain(room: str) -> None:
    """Catches a docstring that asks instead of naming, a function's without its verb, a class's with one."""
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, f"no file in {room}/"
    found = [
        f"{path.relative_to(ROOT)}:{line}: {problem}: {text.splitlines()[0]}"
        for path in files
        for line, node, text in docstrings(path)
        for problem in problems(node, text)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "number"),
    [
        ('"""What is left."""', 1),
        ('def f():\n    """The rows."""', 1),
        ('def f():\n    """Return rows. Whether any are there is open."""', 1),
        ('def f():\n    """Return rows.\n\n    Args:\n        num: How many.\n    """', 1),
        ('class A:\n    """Holds rows."""', 1),
        ('class A:\n    """Rows."""\n    x = 1\n    """Of what."""', 1),
        ('class A:\n    """Rows.\n\n    Args:\n        num: Number of rows, where given.\n    """', 0),
        ('class A:\n    @property\n    def day(self):\n        """The ISO date."""', 0),
    ],
)
def test_a_riddle_is_seen(source: str, number: int, tmp_path: Path) -> None:
    """Holds the negative controls of the test above."""
    path = tmp_path / "a.py"
    path.write_text(source)
    assert sum(len(problems(node, text)) for _, node, text in docstrings(path)) == number


def test_docstrings_of_the_tests_are_no_riddles() -> None:
    """Catches a docstring of a test, or of a builder for tests, that begins with a clause in place of its subject."""
    opener = re.compile(r'^\s*"""((?:What|Whether|Whose|Of|By) .*)', re.MULTILINE)
    files = [file for file in (ROOT / "tests").glob("*.py") if file.name != Path(__file__).name]
    assert {file.name: opener.findall(file.read_text()) for file in files if opener.search(file.read_text())} == {}
    assert opener.search('    """What is left."""')  # the negative control
