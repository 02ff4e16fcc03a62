"""The one reader and writer of YAML: numbers are those of YAML 1.2, and what two readers read differently is refused.

PyYAML reads YAML 1.1, where 010000 is 4096, 12:30:45 is 45045, `no` is False, 1e-3 is text, and the last of two equal
keys counts.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from features.errors import ConfigError

_OCTAL = re.compile(r"[-+]?0[0-9_]+")
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
_BOOL, _INT, _FLOAT, _STR = (f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "str"))
_SCALARS = {
    _BOOL: ("true|True|TRUE|false|False|FALSE", "tTfF"),
    _INT: ("[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)", "-+0123456789"),
    _FLOAT: (
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the booleans and numbers of YAML 1.2, and dates, `_` and 0x as before."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _SCALARS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe writer, which quotes a text that YAML 1.1, YAML 1.2 or `read_yaml` would not take for one."""


for _tag, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))
    _Dumper.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern}|{_OCTAL.pattern})$"), list(_first))


def read_yaml_file(path: str | Path, what: str) -> dict[str, Any]:
    """Read a file of keys and values.

    Args:
        path: The file.
        what: Kind of file, for the errors, e.g. `config`.

    Raises:
        ConfigError: The file is missing, unreadable, no YAML, without keys, or holds what `read_yaml` refuses.
    """
    source = f"{what} {path}"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{source} is missing") from error
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source} is not YAML: {error}") from error
    data = read_yaml(text, source)
    if not isinstance(data, dict):
        raise ConfigError(f"{source} holds {type(data).__name__}, expected keys and values")
    return data


def to_yaml(data: Any) -> str:
    """Write a document that `read_yaml` reads as it was, keys in their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)


def read_yaml(text: str, source: str) -> Any:
    """Read one YAML document.

    Args:
        text: The document.
        source: Name of the document, for the errors.

    Raises:
        ConfigError: The text is no YAML, has a key twice, or a number that means two things.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        problem = next(_problems(node, "", set()), None)
        if problem is not None:
            raise ConfigError(f"{source}, {problem}")
        return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{source} is not YAML: {' '.join(str(error).split())}") from error


def _problems(node: yaml.Node, path: str, seen: set[int]) -> Iterator[str]:
    """Yield what has two meanings in a node and all below it; `seen` has the nodes that aliases may lead to again."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        yield from _two_meanings(node, path)
    elif isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            yield from _problems(item, f"{path}.{place}".lstrip("."), seen)
    elif isinstance(node, yaml.MappingNode):
        yield from _problems_of_mapping(node, path, seen)


def _problems_of_mapping(node: yaml.MappingNode, path: str, seen: set[int]) -> Iterator[str]:
    first: dict[tuple[str, str], yaml.Node] = {}
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            dotted = f"{path}.{key.value}".lstrip(".")
            yield from _two_meanings(key, dotted)
            before = first.setdefault((key.tag, key.value), key)
            if before is not key:
                yield f"line {_line(key)}: {dotted} is there twice, first in line {_line(before)}: remove one of them"
            yield from _problems(value, dotted, seen)


def _two_meanings(node: yaml.ScalarNode, path: str) -> Iterator[str]:
    if node.style is not None or node.tag != _STR:
        return
    if _OCTAL.fullmatch(node.value):
        digits = node.value.replace("_", "")
        other = f"{int(digits, 8)} to" if re.fullmatch(r"[-+]?[0-7]+", digits) else "text to"
        advice = f"write {int(digits)}, or quote it if it is text"
    elif _BASE_60.fullmatch(node.value):
        other, advice = f"{_base_60(node.value):.15g} to", "write the number itself, or quote it if it is text"
    else:
        return
    yield f"line {_line(node)}: {path or 'the value'}: {node.value} is {other} some readers of YAML: {advice}"


def _base_60(text: str) -> float:
    sign = -1 if text.startswith("-") else 1
    total = 0.0
    for part in text.lstrip("-+").replace("_", "").split(":"):
        total = total * 60 + float(part)
    return sign * total


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1
