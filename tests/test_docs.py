"""The documentation: everything that it names exists, and the page of configuration keys is what the code gives."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from features.synthetic.world import SyntheticConfig
from jobs import config_reference, record_reference
from jobs.submitted import parsed
from pipeline.config.load import load_config
from pipeline.config.project import Config
from pipeline.config.reference import descriptions, sections

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in PAGES}
README = TEXTS["README.md"]
PROMISES = TEXTS["docs/promises.md"]
WRITTEN = {
    name: text for name, text in TEXTS.items() if name not in ("docs/config.md", "docs/records.md")
}  # that page is generated

# A machine's own paths and addresses, and hosts of package indexes.
_PRIVATE = re.compile(
    r"(?<![\w.…])/(?:work|root|tmp|home|Users|mnt|opt)\b"
    r"|\b\d{1,3}(?:\.\d{1,3}){3}\b"
    r"|https?://\S*(?:pypi|artifactory|nexus|mirror|registry|proxy)"
    r"|--(?:extra-)?index[-]url"
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
    """List the paths of the tree in docs/architecture.md, folders with a slash at their end."""
    (block,) = re.findall(r"^## The tree$.*?^```\n(.*?)^```$", TEXTS["docs/architecture.md"], re.MULTILINE | re.DOTALL)
    paths, folder = [], ""
    for line in block.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
        paths.append(folder + name if line.startswith(" ") else name)
    return paths


def prose(text: str) -> str:
    """Give a page without its blocks and spans of code."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`]*`", "`", re.sub(r"^    .*$", "", text, flags=re.MULTILINE))


def anchors(text: str) -> set[str]:
    """Give the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def test_the_configuration_page_is_current() -> None:
    """Catches a key that was added, renamed or given another default without `make docs`."""
    for name, module in (("docs/config.md", config_reference), ("docs/records.md", record_reference)):
        assert TEXTS[name] == module.page(), f"{name} is not what the classes say: run `make docs`"


def test_every_key_is_described() -> None:
    """Catches a key without a description, the description of a key that is gone, and one that breaks its table."""
    for path, model in [*sections(Config), *sections(SyntheticConfig)]:
        assert set(descriptions(model)) == set(model.model_fields), f"{path or 'top'}: Args of {model.__name__}"
    rows = [line for line in config_reference.page().splitlines() if line.startswith("| `")]
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
        own, _, submitted = rest.partition(" -- ")
        named = set(re.findall(r"--[a-z][a-z-]*", own))
        if submitted and command == "submit" and not submitted.startswith("COMMAND"):
            parsed(*submitted.split(maxsplit=1)[:1], shlex.split(submitted)[1:])
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
    """Catches a link to a page, picture, folder or heading that was moved."""
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            path = (ROOT / name).parent / file if file else ROOT / name
            assert path.exists(), f"{name} links to {target}"
            assert not anchor or anchor in anchors(path.read_text()), f"{name} links to {target}"


def test_every_page_is_found_from_the_readme() -> None:
    """Catches a page that no reader of the README can reach by its table."""
    linked = set(re.findall(r"\]\((docs/[a-z-]+\.md)\)", README))
    assert linked == {name for name in TEXTS if name != "README.md"}


def test_promised_tests_exist() -> None:
    """Catches a promise whose test was renamed, moved or removed, and one that names no test."""
    named = set(re.findall(r"(test_\w+\.py)(?:::(\w+))?", PROMISES))
    files = {path.name: path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
    gone = [
        f"{file}::{test}"
        for file, test in sorted(named)
        if file not in files
        or (test and not re.search(rf"^(?:def|class) {test}\b|^{test} = ", files[file], re.MULTILINE))
    ]
    assert gone == [], "docs/promises.md names tests that are not there"
    assert len(named) > 180
    rows = [line for line in PROMISES.splitlines() if line.startswith("| ") and not line.endswith("| held by |")]
    assert rows
    assert all("test_" in row for row in rows)


@pytest.mark.parametrize("name", WRITTEN)
def test_prose_names_no_test(name: str) -> None:
    """Catches a page that names tests beside docs/promises.md, where a renamed one would be looked for."""
    assert name == "docs/promises.md" or not re.findall(r"test_\w+(?:\.py|::)", WRITTEN[name])


@pytest.mark.parametrize("name", WRITTEN)
def test_sentences_begin_with_their_subject(name: str) -> None:
    """Catches a sentence whose subject is a clause, which a reader has to keep in mind until its verb."""
    openers = re.compile(r"\b(?:What|Of|By|Whether|Whose|That is)\b[^.|\n]*")
    assert openers.findall(prose(WRITTEN[name])) == []
    assert openers.findall(prose("`What` is a name. Of all rows, some remain."))  # the negative control


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
    """Catches a path of the tree that is gone, and a folder or a module that the tree does not show."""
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
    files = [*ROOT.glob("features/*.py"), *ROOT.glob("models/*.py"), *ROOT.glob("pipeline/**/*.py")]
    modules = {str(path.relative_to(ROOT)) for path in files if path.name != "__init__.py"}
    assert modules <= set(named), f"the tree does not name {sorted(modules - set(named))}"


@pytest.mark.parametrize("name", WRITTEN)
def test_named_modules_exist(name: str) -> None:
    """Catches the path of a module or a folder in prose that was moved."""
    for path in re.findall(r"`((?:features|models|pipeline|jobs|benchmarks)/[\w/.-]*)`", WRITTEN[name]):
        assert (ROOT / path).exists(), f"{name} names {path}"


def test_the_readme_is_one_page() -> None:
    """Catches a README that grows beyond the three minutes of a newcomer; words as `wc -w` counts them."""
    assert 600 <= len(README.split()) <= 900
    headings = re.findall(r"^## (.*)$", README, re.MULTILINE)
    assert headings == [
        "Capabilities",
        "Quick start",
        "Your own log",
        "Status: where it has run",
        "Start reading here",
        "Documentation",
        "Licence",
    ]


def test_shipped_configurations_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a shipped configuration that a renamed key, or a stricter check, has made invalid."""
    monkeypatch.chdir(ROOT)
    files = sorted((ROOT / "jobs" / "configs").glob("*.yaml"))
    projects = [file for file in files if "schema" in yaml.safe_load(file.read_text())]
    assert projects
    for file in projects:
        load_config(file)


def test_the_readme_s_configuration_loads(tmp_path: Path) -> None:
    """Catches a walk-through whose first file is refused, or is longer than promised."""
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(block.splitlines()) <= 20
    (tmp_path / "my.yaml").write_text(block)
    config = load_config(tmp_path / "my.yaml")
    assert config.log_schema.task_names == ["ctr", "vcr"]


def test_the_readme_s_walk_through_is_whole() -> None:
    """Catches a walk-through that skips a step, or whose steps do not name the same files and days."""
    lines = [line for line in README.splitlines() if line.startswith("    python -m jobs.")]
    assert [command for command, _ in commands("\n".join(lines))] == [
        "make_logs",
        "fit_features",
        "train",
        "evaluate",
        "audit",
    ]
    made, fitted, trained, measured = [re.search(r" --days (\S+)", line) for line in lines[:4]]
    assert made
    assert fitted
    assert trained
    assert measured
    assert fitted[1] == trained[1]
    assert (made[1].split("..")[0], made[1].split("..")[1]) == (trained[1].split("..")[0], measured[1])
    (logs,) = re.findall(r"^logs: \{path: (\S+)\}$", README, re.MULTILINE)
    assert lines[0].endswith(f"--logs {logs}")
    assert all("--config my.yaml" in line for line in lines[1:])


def test_no_machine_s_paths_or_hosts() -> None:
    """Catches a path, address or package index of the machine on which a page was written."""
    pictures = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "docs").glob("*.svg")}
    for name, text in (TEXTS | pictures).items():
        found = _PRIVATE.search(text)
        assert found is None, f"{name} has {found and found.group()!r}"
    for private in ("in /tmp/x", "`/root`", "http://10.0.0.1/", "https://mirror.example/simple", "at 10.2.3.4"):
        assert _PRIVATE.search(private)  # the negative control
