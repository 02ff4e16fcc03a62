"""Small declared expressions over the columns of a log, parsed once and evaluated by pyarrow.compute.

The grammar is a fixed subset of Python's expression syntax. The expression tree is walked node by node and never
evaluated as Python. Arithmetic is float64 (so 1 / 0 is infinite, not an error). NaN is unknown and means the same as
null, in a column or as a result such as 0 / 0. Logic is Kleene's: what depends on an unknown value is null. As a truth
value, a non-zero number is true.

    play_ms >= 7000 and played == 1        clip(play_ms / duration_ms, 0, 1)        scene in ("wifi", "feed")
"""

import ast
import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from features.errors import ConfigError, DataError

_MAX_LENGTH = 1000
_MAX_DEPTH = 40

Value = Any  # an Arrow array or scalar

_COMPARISONS: dict[type[ast.cmpop], Callable[[Value, Value], Value]] = {
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Value, Value], Value]] = {
    ast.Add: pc.add,
    ast.Sub: pc.subtract,
    ast.Mult: pc.multiply,
    ast.Div: pc.divide,
}


def _float(value: Value) -> Value:
    kind = value.type
    if not (pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)):
        raise pa.ArrowTypeError(f"{kind} is not a number")  # the cast would parse strings
    return pc.cast(value, pa.float64(), safe=False)  # rounds integers beyond 2**53, as Python does


def as_boolean(value: Value) -> Value:
    """Return the truth of an array or scalar: non-zero numbers are true, NaN and null are unknown."""
    if pa.types.is_boolean(value.type):
        return value
    return pc.not_equal(_nan_to_null(_float(value)), 0.0)


def _nan_to_null(value: Value) -> Value:
    """Return the array or scalar with null in the place of NaN."""
    if not pa.types.is_floating(value.type):
        return value
    unknown = pc.is_nan(value)
    if not pc.any(unknown).as_py():
        return value
    return pc.if_else(unknown, pa.scalar(None, value.type), value)


def _clip(value: Value, low: Value, high: Value) -> Value:
    value = _float(value)  # if_else rather than min_element_wise, which would turn null into a bound
    return pc.if_else(pc.less(value, low), _float(low), pc.if_else(pc.greater(value, high), _float(high), value))


_FUNCTIONS: dict[str, tuple[int, Callable[..., Value]]] = {
    "clip": (3, _clip),
    "log1p": (1, lambda value: pc.log1p(_float(value))),
    "abs": (1, lambda value: pc.abs(_float(value))),
    "floor": (1, lambda value: pc.floor(_float(value))),
    "is_null": (1, pc.is_null),
    "if_else": (3, lambda test, value, other: pc.if_else(as_boolean(test), value, other)),
    "coalesce": (2, lambda value, other: pc.coalesce(_typed(value, other), _typed(other, value))),
}


@dataclass(frozen=True, slots=True)
class Expression:
    """Parsed expression.

    Args:
        text: The expression as declared.
        columns: Names of the columns that the expression reads, in order of first use.
    """

    text: str
    columns: tuple[str, ...]

    def evaluate(self, columns: Mapping[str, pa.Array]) -> pa.Array:
        """Evaluate over equally long columns.

        Args:
            columns: Arrays of length N by column name; needs every name in `self.columns`.

        Returns:
            An array of length N.

        Raises:
            DataError: The columns' types do not fit the operators.
        """
        try:
            value = _evaluate(_parse(self.text).body, columns)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            types = ", ".join(f"{name}: {columns[name].type}" for name in self.columns)
            reason = str(error).splitlines()[0]
            raise DataError(f"expression {self.text!r} does not fit its columns ({types}): {reason}") from error
        if isinstance(value, pa.Scalar):
            num_rows = len(next(iter(columns.values()))) if columns else 0
            return pa.repeat(value, num_rows)
        return value.combine_chunks() if isinstance(value, pa.ChunkedArray) else value


def parse_expression(text: str) -> Expression:
    """Parse and check a declared expression.

    Args:
        text: The expression; a bare column name is an expression too.

    Raises:
        ConfigError: The text is not of the grammar; names the offending part and its character.
    """
    text = text.strip()
    tree = _parse(text)
    names: dict[str, None] = {}
    _check(tree.body, text, names, depth=0)
    if not names:
        raise ConfigError(f"expression {text!r} reads no column: name at least one")
    return Expression(text, tuple(names))


@functools.lru_cache(maxsize=1024)  # a unit of rows evaluates every expression again
def _parse(text: str) -> ast.Expression:
    if len(text) > _MAX_LENGTH:
        raise ConfigError(f"expression of {len(text)} characters, expected at most {_MAX_LENGTH}: {text[:60]!r}...")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.parse(text, mode="eval")
    except SyntaxError as error:
        place = error.offset or 1
        raise ConfigError(f"expression {text!r} does not parse: {error.msg} at character {place}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"expression {text!r} does not parse: {error}") from error


def _check(node: ast.expr, text: str, names: dict[str, None], depth: int) -> None:
    """Check the tree once at declaration, so that a wrong expression fails before a cluster is requested."""
    problem = None
    children: list[ast.expr] = []
    if depth > _MAX_DEPTH:
        problem = f"nests deeper than {_MAX_DEPTH}"
    elif isinstance(node, ast.Name):
        names[node.id] = None
    elif isinstance(node, ast.Call):
        problem, children = _check_call(node, text), node.args
    elif _constant(node) is None:
        children = _children(node)
        problem = None if children else f"has {ast.get_source_segment(text, node)!r}, which is not in the grammar,"
    if problem:
        allowed = "columns, numbers, strings, + - * /, comparisons, in (...), and/or/not, " + ", ".join(_FUNCTIONS)
        raise ConfigError(f"expression {text!r} {problem} at character {node.col_offset + 1}; allowed: {allowed}")
    for child in children:
        _check(child, text, names, depth + 1)


def _check_call(node: ast.Call, text: str) -> str | None:
    name = node.func.id if isinstance(node.func, ast.Name) else None
    if name not in _FUNCTIONS:
        return f"calls {ast.get_source_segment(text, node.func)!r}, which is not a function of the grammar,"
    if node.keywords:
        return f"calls {name}, which takes no keywords,"
    expected = _FUNCTIONS[name][0]
    if len(node.args) != expected:
        return f"calls {name} with {len(node.args)} arguments, expected {expected},"
    return None


def _constant(node: ast.expr) -> bool | int | float | str | None:
    """Return the value of a number (signed or not) or string; None for every other node."""
    match node:
        case ast.Constant(value=int() as value) if value >= 2**63:
            return None
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if value <= 2**63:
            return -value
    return None


def _children(node: ast.expr) -> list[ast.expr]:
    """Return the operands of an operator node of the grammar; empty for every other node."""
    match node:
        case ast.BoolOp(values=values):
            return values
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            return [operand]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return [left, right]
        case ast.Compare(left=left, ops=[ast.In() | ast.NotIn()], comparators=[ast.Tuple(elts=items)]):
            of_one_kind = len({isinstance(_constant(item), str) for item in items}) == 1
            return [left, *items] if of_one_kind and all(_constant(item) is not None for item in items) else []
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARISONS for op in ops):
            return [left, *others]
    return []


def _evaluate(node: ast.expr, columns: Mapping[str, pa.Array]) -> Value:
    return _nan_to_null(_evaluate_node(node, columns))


def _evaluate_node(node: ast.expr, columns: Mapping[str, pa.Array]) -> Value:
    constant = _constant(node)
    if constant is not None:
        return pa.scalar(constant)
    match node:
        case ast.Name(id=name):
            return columns[name]
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _FUNCTIONS[name][1](*(_evaluate(argument, columns) for argument in arguments))
        case ast.BoolOp(op=op, values=values):
            combine = pc.and_kleene if isinstance(op, ast.And) else pc.or_kleene
            result = as_boolean(_evaluate(values[0], columns))
            for value in values[1:]:
                result = combine(result, as_boolean(_evaluate(value, columns)))
            return result
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return pc.invert(as_boolean(_evaluate(operand, columns)))
        case ast.UnaryOp(operand=operand):
            return pc.negate(_float(_evaluate(operand, columns)))
        case ast.BinOp(left=left, op=op, right=right):
            return _ARITHMETIC[type(op)](_float(_evaluate(left, columns)), _float(_evaluate(right, columns)))
        case ast.Compare():
            return _compare(node, columns)
    raise AssertionError(f"unchecked node {ast.dump(node)}")


def _typed(value: Value, other: Value) -> Value:
    """Give a column without a type, whose values are all null, the type of the other operand."""
    if not pa.types.is_null(value.type):
        return value
    return pc.cast(value, pa.int64() if pa.types.is_null(other.type) else other.type)


def _compare(node: ast.Compare, columns: Mapping[str, pa.Array]) -> Value:
    left = _evaluate(node.left, columns)
    if isinstance(node.ops[0], ast.In | ast.NotIn):
        items = node.comparators[0]
        assert isinstance(items, ast.Tuple)
        members = pa.array([_constant(item) for item in items.elts])
        found = pc.is_in(_typed(left, members), members)
        found = pc.if_else(pc.is_null(left), pa.scalar(None, pa.bool_()), found)
        return found if isinstance(node.ops[0], ast.In) else pc.invert(found)
    result: Value | None = None
    for op, comparator in zip(node.ops, node.comparators, strict=True):
        right = _evaluate(comparator, columns)
        step = _COMPARISONS[type(op)](*_comparable(left, right))
        result = step if result is None else pc.and_kleene(result, step)
        left = right
    assert result is not None
    return result


def _comparable(left: Value, right: Value) -> tuple[Value, Value]:
    """Cast a boolean compared with a number, which Arrow refuses; logs hold 0 / 1 columns as either."""
    left, right = _typed(left, right), _typed(right, left)
    if pa.types.is_boolean(left.type) == pa.types.is_boolean(right.type):
        return left, right
    return tuple(pc.cast(value, pa.int64()) if pa.types.is_boolean(value.type) else value for value in (left, right))
