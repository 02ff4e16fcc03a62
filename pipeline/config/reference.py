"""Reference pages of configurations and records: every key, generated from the classes and their docstrings."""

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_BOUNDS = {
    "ge": "≥ {}",
    "gt": "> {}",
    "le": "≤ {}",
    "lt": "< {}",
    "min_length": "at least {}",
    "pattern": "`{}`",
}
_PLAIN = {"int": "integer", "float": "number", "str": "text", "bool": "true or false", "date": "date"}


def sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield a config class and all below it, depth first, each with its dotted path in a file.

    A list's entries are `[]` in the path, a mapping's `<name>`. A class that several members of a union have at one
    path comes once.
    """
    yield from dict.fromkeys(_sections(model, path))


def _sections(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, model
    for name, field in model.model_fields.items():
        for suffix, inner in _models(field.annotation):
            yield from _sections(inner, f"{path}.{_key(name, field)}{suffix}".removeprefix("."))


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """Return the Args descriptions of a class's docstring, by field name."""
    text = (inspect.getdoc(model) or "").partition("\nArgs:\n")[2]
    entries = re.findall(r"^    (\w+): (.+(?:\n     .+)*)", text, re.MULTILINE)
    return {name: " ".join(said.split()) for name, said in entries}


def reference(model: type[BaseModel], root: str) -> str:
    """Return headings and tables for a config class and all below it.

    Args:
        model: The class of a whole file.
        root: The heading of its top level.
    """
    return "\n".join(_section(path, inner, root) for path, inner in sections(model))


def _section(path: str, model: type[BaseModel], root: str) -> str:
    kind = model.model_fields.get("kind")
    kinds = get_args(kind.annotation) if kind is not None and kind.is_required() else ()
    tag = f" (kind: {kinds[0]})" if len(kinds) == 1 else ""
    heading = "#" * min(3 + path.count("."), 4) + f" `{path}`{tag}" if path else f"## {root}"
    first_line = (inspect.getdoc(model) or "").partition("\n")[0]
    table = ["| key | type | default | meaning |", "|---|---|---|---|"]
    said = descriptions(model)
    for name, field in sorted(model.model_fields.items(), key=lambda item: item[0] != "kind"):
        type_, default = _type(field.annotation, field.metadata), _default(field)
        table.append(f"| `{_key(name, field)}` | {type_} | {default} | {said.get(name, '')} |")
    return "\n".join([heading, "", first_line, "", *table, ""])


def _key(name: str, field: FieldInfo) -> str:
    """Return the key of a field in a file."""
    return field.serialization_alias or field.alias or name


def _models(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the config classes within an annotation, with their suffixes of the path."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "", annotation
    place = {list: "[]", tuple: "[]", dict: ".<name>"}.get(get_origin(annotation), "")
    for argument in get_args(annotation):
        yield from ((place + suffix, model) for suffix, model in _models(argument))


def _type(annotation: Any, metadata: Any = ()) -> str:
    """Return an annotation in words, with its bounds."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0], arguments[1:])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    bounds = _bounds(metadata)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_type(part, metadata) for part in arguments if part is not NoneType))
    if origin is list:
        return f"list of {_type(arguments[0])}{bounds and ','}{bounds}"
    if origin is dict:
        return f"by name: {_type(arguments[1])}"
    if origin is tuple:
        return (
            f"list of {_type(arguments[0])}"
            if arguments[1:] == (Ellipsis,)
            else f"{len(arguments)} of {_type(arguments[0])}"
        )
    if not isinstance(annotation, type) or annotation is Any or is_dataclass(annotation):
        return "JSON"
    return "section" if issubclass(annotation, BaseModel) else _PLAIN[annotation.__name__] + bounds


def _bounds(metadata: Any) -> str:
    flat = [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
    said = [
        words.format(f"{value:,}" if isinstance(value, int) else value)
        for part in flat
        for name, words in _BOUNDS.items()
        if (value := getattr(part, name, None)) is not None
    ]
    return f" {', '.join(said)}" if said else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "absent"
    if isinstance(value, BaseModel):
        return "its defaults"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"
