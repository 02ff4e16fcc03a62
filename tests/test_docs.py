"""The documentation: that what it names is there, and that the page of configuration keys is what the code gives."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from features.synthetic.world import SyntheticConfig
from jobs.config_reference import page
from pipeline.config.load import load_config
from pipeline.config.project import Config
from pipeline.config.reference import descriptions, sections

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in PAGES}
README = TEXTS["README.md"]

# A machine's own paths and addresses, and hosts of package indexes.
_PRIVATE = re.compile(
    r"(?<![\w.…])/(?:work|root|tmp|home|Users|mnt|opt)\b"
    r"|\b\d{1,3}(?:\.\d{1,3}){3}\b"
    r"|https?://\S*(?:pypi|artifactory|nexus|mirror|registry|proxy)"
    r"|--(?:extra-)?index-url"
)


def parser_of(command: str) -> argparse.ArgumentParser:
    """The arguments of a command, as it declares them; a command without any declares none."""
    parser = argparse.ArgumentParser(prog=command)
    add_arguments = getattr(importlib.import_module(f"jobs.{command}"), "add_arguments", None)
    if add_arguments is not None:
        add_arguments(parser)
    return parser


def commands(text: str) -> list[tuple[str, str]]:
    """The commands that a page names, each with the rest of its line or code span."""
    return re.findall(r"python -m jobs\.([a-z_]+)([^`\n|]*)", text)


def tree() -> list[str]:
    """The paths that the README's tree names, folders with a slash at their end."""
    (block,) = re.findall(r"^## The tree$.*?^```\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    paths, folder = [], ""
    for line in block.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
        paths.append(folder + name if line.startswith(" ") else name)
    return paths


def test_the_configuration_page_is_current() -> None:
    """Catches a key that was added, renamed or given another default without `make docs`."""
    assert TEXTS["docs/config.md"] == page(), "docs/config.md is not what the config classes say: run `make docs`"


def test_every_key_is_described() -> None:
    """Catches a key without a description, the description of a key that is gone, and one that breaks its table."""
    for path, model in [*sections(Config), *sections(SyntheticConfig)]:
        assert set(descriptions(model)) == set(model.model_fields), f"{path or 'top'}: Args of {model.__name__}"
    rows = [line for line in page().splitlines() if line.startswith("| `")]
    assert rows
    assert all(len(cells) == 6 and all(cells[1:-1]) for cells in ([c.strip() for c in row.split("|")] for row in rows))


def test_an_undescribed_key_is_seen() -> None:
    """The negative control of the test above; and a description of two lines is one text."""

    class Half(BaseModel):
        """Half described.

        Args:
            told: Of this,
                two lines.
        """

        told: int
        untold: int

    assert descriptions(Half) == {"told": "Of this, two lines."}


def test_the_page_shows_every_section_once() -> None:
    """Catches a walk that misses the members of a union, or what stands in lists and mappings."""
    found = [(path, model.__name__) for path, model in sections(Config)]
    assert len(found) == len(set(found))
    for expected in [
        ("", "Config"),
        ("schema.features[]", "SequenceFeature"),
        ("schema.tables[].init", "TableInit"),
        ("model.network", "CGCConfig"),
        ("model.network.levels[]", "LevelConfig"),
        ("loss_weights.tasks.<name>", "TaskWeightConfig"),
        ("ingest.shuffle", "ShuffleConfig"),
    ]:
        assert expected in found


@pytest.mark.parametrize("name", TEXTS)
def test_make_targets_exist(name: str) -> None:
    """Catches a page that names a target which the Makefile no longer has."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^    |`)make ([a-z-]+)", TEXTS[name], re.MULTILINE))
    assert named <= targets
    assert name != "README.md" or {"demo", "test"} <= named


@pytest.mark.parametrize("name", TEXTS)
def test_commands_and_their_options_exist(name: str) -> None:
    """Catches a command or an option that was renamed: the reader's first try would end with exit code 2."""
    for command, rest in commands(TEXTS[name]):
        assert (ROOT / "jobs" / f"{command}.py").exists(), f"{name} names jobs.{command}"
        options = {option for action in parser_of(command)._actions for option in action.option_strings}
        named = set(re.findall(r"--[a-z][a-z-]*", rest))
        assert named <= options, f"{name}: python -m jobs.{command}{rest}"


@pytest.mark.parametrize("name", TEXTS)
def test_whole_command_lines_parse(name: str) -> None:
    """Catches a command line of a page that lacks an argument, or gives one that is no value of its option."""
    lines = [line for line in TEXTS[name].splitlines() if line.startswith("    python -m jobs.")]
    for command, rest in commands("\n".join(lines)):
        parser_of(command).parse_args(shlex.split(rest))
    assert name != "README.md" or len(lines) >= 4


@pytest.mark.parametrize("name", TEXTS)
def test_links_resolve(name: str) -> None:
    """Catches a link to a page, picture or folder that was moved."""
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if not re.match(r"[a-z]+:|#", target):
            path = (ROOT / name).parent / target.partition("#")[0]
            assert path.exists(), f"{name} links to {target}"


@pytest.mark.parametrize("name", TEXTS)
def test_named_tests_exist(name: str) -> None:
    """Catches a promise whose test was renamed or removed."""
    named = re.findall(r"(test_\w+\.py)::(test_\w+)", TEXTS[name])
    assert name != "README.md" or named
    for file, test in named:
        path = ROOT / "tests" / file
        assert path.exists(), f"{name} names {file}"
        assert re.search(rf"^def {test}\(", path.read_text(), re.MULTILINE), f"{name} names {file}::{test}"


@pytest.mark.parametrize("name", TEXTS)
def test_named_keys_exist(name: str) -> None:
    """Catches a dotted key of the configuration, in prose or after `--set`, that is no key."""
    known = {
        f"{path}.{field.alias or key}".removeprefix(".")
        for path, model in sections(Config)
        for key, field in model.model_fields.items()
    }
    tops = {path for path in known if "." not in path}
    named = re.findall(r"(?:`|--set )([a-z_]+(?:\.[a-z_]+)+)(?<!\.py)(?=[`:=])", TEXTS[name])
    assert {key for key in named if key.partition(".")[0] in tops} <= known


def test_the_tree_is_true() -> None:
    """Catches a path of the README's tree that is gone, and a folder of the project that the tree does not show."""
    named = tree()
    assert len(named) == len(set(named))
    for path in named:
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), f"the tree names {path}"
    ignored = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    folders = {
        f"{path.name}/"
        for path in ROOT.iterdir()
        if path.is_dir() and path.name not in ignored and (path.name == ".ci" or not path.name.startswith("."))
        if any(file.is_file() and "__pycache__" not in file.parts for file in path.rglob("*"))
    }
    assert folders <= set(named), f"the tree does not name {sorted(folders - set(named))}"


def test_shipped_configurations_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a shipped configuration that a renamed key, or a stricter check, has made invalid."""
    monkeypatch.chdir(ROOT)
    files = sorted((ROOT / "jobs" / "configs").glob("*.yaml"))
    projects = [file for file in files if "schema" in yaml.safe_load(file.read_text())]
    assert projects
    for file in projects:
        load_config(file)


def test_the_readme_s_configuration_loads(tmp_path: Path) -> None:
    """Catches a walk-through whose first file is refused."""
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    (tmp_path / "my.yaml").write_text(block)
    config = load_config(tmp_path / "my.yaml")
    assert config.log_schema.task_names == ["ctr", "vcr"]


def test_no_machine_s_paths_or_hosts() -> None:
    """Catches a path, address or package index of the machine on which a page was written."""
    pictures = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "docs").glob("*.svg")}
    for name, text in (TEXTS | pictures).items():
        found = _PRIVATE.search(text)
        assert found is None, f"{name} has {found and found.group()!r}"
    for private in ("in /tmp/x", "`/root`", "http://10.0.0.1/", "https://mirror.example/simple", "at 10.2.3.4"):
        assert _PRIVATE.search(private)  # the negative control
