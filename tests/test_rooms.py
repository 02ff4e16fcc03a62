"""The rooms of pipeline/: which there are, and that imports run one way; files are short, and tests stand alone."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
ROOMS = [
    "config",
    "storage",
    "tracking",
    "ingest",
    "lineage",
    "cluster",
    "log_passes",
    "checkpoint",
    "trainer",
    "evaluation",
    "migration",
    "scoring",
    "daily",
    "studies",
    "submission",
    "report",
]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("pipeline", cache_dir=None)


def test_the_rooms_of_pipeline() -> None:
    """Catches a file on the top level of pipeline/, and a room that the contract of the floors does not know."""
    found = [path for path in (ROOT / "pipeline").iterdir() if path.name != "__pycache__"]
    assert [path.name for path in found if path.is_file()] == ["__init__.py"]
    assert sorted(path.name for path in found if path.is_dir()) == sorted(ROOMS)
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (floors,) = [contract["layers"] for contract in contracts if contract.get("containers") == ["pipeline"]]
    assert floors[::-1] == ROOMS


def test_a_room_imports_only_from_those_before_it(graph: grimp.ImportGraph) -> None:
    """Catches an import that runs back up, inside a function too."""
    floors = {f"pipeline.{room}": floor for floor, room in enumerate(ROOMS)}
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            if importer.count(".") and imported.count("."):
                rooms = [".".join(module.split(".")[:2]) for module in (importer, imported)]
                assert floors[rooms[1]] <= floors[rooms[0]], f"{importer} imports {imported}"


def test_there_is_no_circle(graph: grimp.ImportGraph) -> None:
    """Catches two files that import each other, of one room too."""
    left = {module: graph.find_modules_directly_imported_by(module) & graph.modules for module in graph.modules}
    while ready := [module for module, imported in left.items() if not imported & left.keys()]:
        for module in ready:
            del left[module]
    assert not left, f"these import each other: {sorted(left)}"


def test_files_are_short() -> None:
    """Catches a file that has grown beyond one concept: 400 lines, in tests/ as elsewhere."""
    rooms = ("features", "models", "pipeline", "jobs", "benchmarks", "tests")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 300
    assert [path.name for path in files if len(path.read_text().splitlines()) > 400] == []


def test_no_test_file_imports_another() -> None:
    """Catches builders that live in a test file, so that a change of its tests changes other tests."""
    files = {path.name: path.read_text() for path in (ROOT / "tests").glob("*.py")}
    importing = re.compile(r"^\s*(?:from|import) test_\w+", re.MULTILINE)
    assert [name for name, text in files.items() if importing.search(text)] == []
    assert importing.search("from test_runs import weights")  # the negative control


def _imports(statement: str, heavy: list[str]) -> list[str]:
    """Return which of some packages a process has imported after a statement."""
    code = f"import sys\n{statement}\nprint(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.split()


COMMANDS = sorted(path.stem for path in (ROOT / "jobs").glob("[a-z]*.py"))


def test_help_and_a_misspelt_key_wait_for_no_import() -> None:
    """Catches an import at the top of a command, or of the configuration, that costs every call of it seconds."""
    every = "\n".join(f"import jobs.{name}" for name in COMMANDS)
    assert _imports(every, ["numpy", "pyarrow", "torch", "torchrec", "ray", "pydantic"]) == []
    heavy = ["torchrec", "fbgemm_gpu", "ray", "s3fs", "pandas"]
    assert _imports("import pipeline.config.load", heavy) == []
    assert _imports("import pipeline.lineage.audit", ["torchrec", "fbgemm_gpu"]) == []
    assert _imports("import torchrec", heavy)  # negative control
