"""Declared expressions against plain Python evaluated row by row, and every way to write a wrong one."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from features.errors import ConfigError, DataError
from features.expressions import parse_expression

Row = dict[str, int | float | bool | str | None]
Case = tuple[str, Callable[[Row], Any]]  # an expression, and what plain Python makes of one row

_NAN = float("nan")
_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "i": st.none() | st.integers(-3, 3),
            "f": st.none() | st.sampled_from([-2.5, -1.0, 0.0, 0.5, 2.0, float("inf"), _NAN]),
            "s": st.none() | st.sampled_from(["a", "b", ""]),
            "b": st.none() | st.booleans(),
        }
    ),
    max_size=8,
)
_TYPES = {"i": pa.int32(), "f": pa.float64(), "s": pa.string(), "b": pa.bool_()}


def _evaluate(text: str, **columns: object) -> list[object]:
    arrays = {name: pa.array(value) if isinstance(value, list) else value for name, value in columns.items()}
    return parse_expression(text).evaluate(arrays).to_pylist()


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _strict(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with an unknown result for an unknown value, and for a result that is no number."""
    return lambda *values: None if None in map(_known, values) else _known(function(*values))


def _divide(left: float, right: float) -> float:
    with np.errstate(all="ignore"):
        return float(np.float64(left) / np.float64(right))


def _log1p(value: float) -> float:
    return pc.log1p(pa.scalar(value, pa.float64())).as_py()  # numpy's differs in the last bit


_ARITHMETIC = {"+": lambda x, y: x + y, "-": lambda x, y: x - y, "*": lambda x, y: x * y, "/": _divide}
_COMPARISONS = {
    "==": lambda x, y: x == y,
    "!=": lambda x, y: x != y,
    "<": lambda x, y: x < y,
    "<=": lambda x, y: x <= y,
    ">": lambda x, y: x > y,
    ">=": lambda x, y: x >= y,
}


def _and(left: bool | None, right: bool | None) -> bool | None:
    if left is False or right is False:
        return False
    return None if left is None or right is None else True


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value


def _truth(value: float | None) -> bool | None:
    return None if _known(value) is None else value != 0


def _float_of(name: str) -> Callable[[Row], object]:
    return lambda row: _strict(float)(row[name])


@st.composite
def _numbers(draw: st.DrawFn, depth: int) -> Case:
    kind = draw(st.sampled_from(["leaf"] if depth == 0 else ["leaf", "binary", "unary", "clip", "if_else", "coalesce"]))
    if kind == "leaf":
        constant = draw(st.sampled_from(["i", "f", -2, -0.5, 0, 1, 2.5]))
        if isinstance(constant, str):
            return constant, _float_of(constant)
        return str(constant), lambda row: float(constant)
    text, value = draw(_numbers(depth - 1))
    if kind == "unary":
        name, function = draw(
            st.sampled_from(
                [("-", lambda x: -x), ("abs", abs), ("floor", lambda x: float(np.floor(x))), ("log1p", _log1p)]
            )
        )
        return f"{name}(({text}) * 1)", lambda row: _strict(function)(_strict(lambda x: x * 1.0)(value(row)))
    if kind == "clip":
        clip = _strict(lambda x: -1.0 if x < -1 else 1.5 if x > 1.5 else x)
        return f"clip({text}, -1, 1.5)", lambda row: clip(value(row))
    other_text, other = draw(_numbers(depth - 1))
    if kind == "binary":
        symbol = draw(st.sampled_from(sorted(_ARITHMETIC)))
        function = _strict(_ARITHMETIC[symbol])
        return f"({text}) {symbol} ({other_text})", lambda row: function(value(row), other(row))
    if kind == "coalesce":
        return f"coalesce({text}, {other_text})", lambda row: other(row) if value(row) is None else value(row)
    test_text, test = draw(_booleans(depth - 1))
    return (
        f"if_else({test_text}, {text}, {other_text})",
        lambda row: None if test(row) is None else value(row) if test(row) else other(row),
    )


@st.composite
def _booleans(draw: st.DrawFn, depth: int) -> Case:
    leaves = ["column", "number", "is_null", "in", "text", "chain"]
    kind = draw(st.sampled_from(leaves if depth == 0 else [*leaves, "and", "or", "not"]))
    if kind == "column":
        return "b", lambda row: row["b"]
    if kind == "is_null":
        return "is_null(f)", lambda row: _known(row["f"]) is None
    if kind == "in":
        name, found = draw(st.sampled_from([("in", True), ("not in", False)]))
        return f"i {name} (-1, 0, 2)", lambda row: None if row["i"] is None else (row["i"] in (-1, 0, 2)) == found
    symbol = draw(st.sampled_from(sorted(_COMPARISONS)))
    if kind == "text":
        return f"s {symbol} 'a'", lambda row: None if row["s"] is None else _COMPARISONS[symbol](row["s"], "a")
    if kind in ("number", "chain"):
        number_text, number = draw(_numbers(max(depth - 1, 0)))
        if kind == "number":
            return f"not not ({number_text})", lambda row: _truth(number(row))
        first, second = _strict(_COMPARISONS["<"]), _strict(_COMPARISONS[symbol])
        return (
            f"i < ({number_text}) {symbol} f",
            lambda row: _and(first(row["i"], number(row)), second(number(row), row["f"])),
        )
    text, value = draw(_booleans(depth - 1))
    if kind == "not":
        return f"not ({text})", lambda row: _not(value(row))
    other_text, other = draw(_booleans(depth - 1))
    if kind == "and":
        return f"({text}) and ({other_text})", lambda row: _and(value(row), other(row))
    return f"({text}) or ({other_text})", lambda row: _not(_and(_not(value(row)), _not(other(row))))


def _same(left: object, right: object) -> bool:
    return left == right and (left is None) == (right is None)


@settings(max_examples=300, deadline=None)
@given(case=st.one_of(_numbers(3), _booleans(3)), rows=_ROWS, padding=st.integers(0, 3))
def test_expressions_equal_plain_python_with_unknown_values(case: Case, rows: list[Row], padding: int):
    """An operator that differs from Python's, that loses a null, or that ignores the offset of a sliced array."""
    text, reference = case
    assume(re.search(r"\b[ifsb]\b", text))  # else it reads no column, which is refused
    columns = {
        name: pa.array([None] * padding + [row[name] for row in rows], kind)[padding:] for name, kind in _TYPES.items()
    }
    found = parse_expression(text).evaluate(columns).to_pylist()
    expected = [reference(row) for row in rows]
    assert all(_same(left, right) for left, right in zip(found, expected, strict=True)), (text, rows, found, expected)


def test_the_examples_of_the_documentation():
    """The expressions that every configuration copies do not mean what they say."""
    assert _evaluate("play_ms >= 7000 and played == 1", play_ms=[6999, 7000, None, 9000], played=[1, 1, 1, None]) == [
        False,
        True,
        None,
        None,
    ]
    assert _evaluate("clip(play_ms / duration_ms, 0, 1)", play_ms=[5, 30, -1], duration_ms=[10, 10, 10]) == [0.5, 1, 0]
    assert _evaluate("scene in ('wifi', 'feed')", scene=["wifi", "x", None]) == [True, False, None]


def test_division_by_zero_is_infinite_and_division_is_not_of_integers():
    """1 / 2 of integer columns becomes 0, or a zero duration stops a job instead of failing the label check."""
    assert _evaluate("x / 2", x=[1]) == [0.5]
    assert _evaluate("x / 0", x=[1, -1, 0, None]) == [math.inf, -math.inf, None, None]


def test_functions_by_hand():
    """A function that is another than its name says."""
    assert _evaluate("log1p(x)", x=[0, None, 1.0]) == [0, None, pytest.approx(math.log(2), rel=1e-12)]
    assert _evaluate("floor(x)", x=[1.5, -1.5, None]) == [1, -2, None]
    assert _evaluate("clip(x, -1, y)", x=[-5, 0, 5, None], y=[2, 2, 2, 2]) == [-1, 0, 2, None]
    assert _evaluate("coalesce(x, y)", x=[1, None, None], y=[7, 8, None]) == [1, 8, None]
    assert _evaluate("if_else(x > 1, x, -1)", x=[1, 2, None]) == [-1, 2, None]


def test_columns_are_listed_once_in_order_of_first_use():
    """A column that an expression reads is not decoded, or a function's name is taken for a column."""
    assert parse_expression("if_else(b > 1, a, b) + clip(c, 0, a)").columns == ("b", "a", "c")


def test_unsigned_and_narrow_integers_do_not_wrap():
    """-x of an unsigned column is 255, abs of int8's -128 is -128."""
    assert _evaluate("-x", x=pa.array([1, 0], pa.uint8())) == [-1, 0]
    assert _evaluate("abs(x)", x=pa.array([-128, None], pa.int8())) == [128, None]
    assert _evaluate("x == 300", x=pa.array([44], pa.int8())) == [False]
    assert _evaluate("x * x", x=pa.array([200], pa.uint8())) == [40_000]


def test_numbers_beyond_two_to_the_53_are_rounded_not_refused():
    """A timestamp in nanoseconds stops the job with "Integer value not in range"."""
    assert _evaluate("x / 1000000000", x=[1_700_000_000_123_456_789]) == [1_700_000_000.1234567]
    assert _evaluate("x == 9007199254740993", x=[2**53 + 1, 2**53]) == [True, False]  # comparisons stay exact


def test_booleans_compare_with_zero_and_one():
    """The same log with booleans in place of 0 / 1 cannot be read by `played == 1`."""
    assert _evaluate("x == 1", x=[True, False, None]) == [True, False, None]
    assert _evaluate("x != False", x=[1, 0, None]) == [True, False, None]
    assert _evaluate("x > 0.5", x=[True, False]) == [True, False]
    assert _evaluate("if_else(x, 'a', 'b')", x=[2, 0, None]) == ["a", "b", None]


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "x >= 7000",
        "x < 7000",
        "x != 1",
        "not x",
        "x and True",
        "x in (1, 2)",
        "x not in (1, 2)",
        "x * 0 == 0",
        "0 / (x * 0) == 1",
        "clip(x, 0, 1)",
        "log1p(x) > 1",
        "if_else(x > 1, 1, 0)",
        "coalesce(x, x)",
        "y < x < 9",
    ],
)
def test_nan_is_null_in_every_expression(text: str):
    """A NaN, which is how pandas writes a null, is below every number: its rows get label 0 where a null has none."""
    assert _evaluate(text, x=[_NAN], y=[1.0]) == [None]
    assert _evaluate(text, x=pa.array([None], pa.float64()), y=[1.0]) == [None]


def test_what_is_known_in_spite_of_nan():
    """A NaN that is asked for, or that does not matter, makes a row unknown."""
    assert _evaluate("is_null(x)", x=[_NAN, None, 0.0]) == [True, True, False]
    assert _evaluate("is_null(x / y)", x=[0.0, 1.0], y=[0.0, 2.0]) == [True, False]
    assert _evaluate("coalesce(x, -1)", x=[_NAN, None, 2.0]) == [-1, -1, 2]
    assert _evaluate("x > 1 or y", x=[_NAN, _NAN], y=[True, False]) == [True, None]
    assert _evaluate("x and True", x=[_NAN, 1.0, 0.0, None]) == [None, True, False, None]


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary", "chunked"])
def test_strings_of_every_arrow_type(kind: str):
    """A column that a writer stored as categories, or as large strings, does not compare."""
    strings = pa.array(["no", "a", "b", None, "c"], pa.large_string() if kind == "large_string" else pa.string())[1:]
    column = strings.dictionary_encode() if kind == "dictionary" else strings
    if kind == "chunked":
        column = pa.chunked_array([strings[:1], strings[1:]])
    assert _evaluate("x == 'a'", x=column) == [True, False, None, False]
    assert _evaluate("x in ('a', 'c')", x=column) == [True, False, None, True]
    assert _evaluate("x not in ('a', 'c')", x=column) == [False, True, None, False]


def test_a_chunked_column_gives_one_array():
    """Chunked input leaks a ChunkedArray into the encoder, which indexes buffers."""
    found = parse_expression("x + 1").evaluate({"x": pa.chunked_array([[1], [], [2, None]])})
    assert isinstance(found, pa.Array)
    assert found.to_pylist() == [2, 3, None]


def test_no_rows_and_only_nulls():
    """An empty unit, or a column without any value (Parquet's null type), stops a job."""
    assert _evaluate("clip(x / y, 0, 1) > 0.5 or x in (1, 2)", x=pa.array([], pa.int64()), y=pa.array([], "f8")) == []
    nothing = pa.nulls(2)
    assert _evaluate("x > 1", x=nothing) == [None, None]
    assert _evaluate("x and y", x=nothing, y=[False, True]) == [False, None]


_UNGRAMMATICAL = {
    "": "does not parse",
    "play_ms >=": "does not parse",
    "a; b": "does not parse",
    "a = 1": "does not parse",
    "a\n+ b": "does not parse",
    "a\x00": "does not parse",
    "(" * 900: "does not parse",
    "a" * 1001: "1001 characters",
    "5 > 3": "reads no column",
    "a.b": "'a.b'",
    "a[0]": "'a[0]'",
    "a ** 2": "'a ** 2'",
    "a % 2": "'a % 2'",
    "a // 2": "'a // 2'",
    "a & b": "'a & b'",
    "~a": "'~a'",
    "+a": "'+a'",
    "a is b": "'a is b'",
    "a if b else c": "'a if b else c'",
    "[a, b]": "'[a, b]'",
    "{a: 1}": "'{a: 1}'",
    "lambda: a": "'lambda: a'",
    "(b := a)": "'b := a'",
    "f'{a}'": '''"f'{a}'"''',
    "[x for x in a]": "'[x for x in a]'",
    "a in b": "'a in b'",
    "a in ()": "'a in ()'",
    "a in (b, 1)": "'a in (b, 1)'",
    "a in (1, 'x')": "\"a in (1, 'x')\"",
    "a in (1, None)": "'a in (1, None)'",
    "a in [1, 2]": "'a in [1, 2]'",
    "1 < a in (1, 2)": "'1 < a in (1, 2)'",
    "a == None": "'None'",
    "a == b'x'": "\"b'x'\"",
    "a == 1j": "'1j'",
    "a == 9223372036854775808": "'9223372036854775808'",
    "a in (1, 100000000000000000000)": "100000000000000000000",
    "sqrt(a)": "'sqrt', which is not a function",
    "a.clip(0, 1)": "'a.clip', which is not a function",
    "clip(a, 0)": "2 arguments, expected 3",
    "clip(a, 0, 1, 2)": "4 arguments, expected 3",
    "clip(a, low=0, high=1)": "takes no keywords",
    "abs(*a)": "'*a'",
    "__import__('os').system('true')": "not a function",
    "(lambda: a)()": "not a function",
    "(" + "not " * 200 + "a)(1)": "not a function",
    "not " * 200 + "a": "nests deeper",
    "+".join(["a"] * 100): "nests deeper",
}


@pytest.mark.parametrize(("text", "named"), _UNGRAMMATICAL.items(), ids=lambda value: value[:30])
def test_what_is_outside_the_grammar_is_refused_in_one_line(text: str, named: str):
    """Python outside the grammar runs, or is refused without saying what and where."""
    with pytest.raises(ConfigError) as caught:
        parse_expression(text)
    message = str(caught.value)
    assert named in message
    assert "\n" not in message
    assert len(message) < 2500


def test_the_place_of_an_error_counts_from_the_expression_s_first_character():
    """Indentation in a YAML block shifts the place that a message points at."""
    with pytest.raises(ConfigError, match=r"'c\.d'.* at character 9"):
        parse_expression("  a + b * c.d")


_UNFITTING = [
    ("x + 1", ["12"], "string"),
    ("-x", ["12"], "string"),
    ("x == -'a'", ["a"], "string"),
    ("x < 3", ["a"], "string"),
    ("x == 'a'", [1], "int64"),
    ("x in ('a', 'b')", [1], "int64"),
    ("x in (1, 2)", ["a"], "string"),
    ("not x", ["a"], "string"),
    ("x and True", ["a"], "string"),
    ("coalesce(x, 'a')", [1], "int64"),
    ("if_else(x, 1, 0)", ["a"], "string"),
    ("clip(x, 0, 1)", [[1]], "list"),
    ("log1p(x)", [b"1"], "binary"),
]


@pytest.mark.parametrize(("text", "values", "named"), _UNFITTING, ids=[text for text, _, _ in _UNFITTING])
@pytest.mark.parametrize("num_rows", [0, 1])
def test_columns_of_a_wrong_type_are_refused_in_one_line(text: str, values: list, named: str, num_rows: int):
    """A string column is parsed as numbers, or a wrong type is first seen at the row that does not parse."""
    with pytest.raises(DataError) as caught:
        parse_expression(text).evaluate({"x": pa.array(values)[:num_rows]})
    message = str(caught.value)
    assert repr(text) in message
    assert f"x: {named}" in message
    assert "\n" not in message
