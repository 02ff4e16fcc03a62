"""Figures in messages: four digits, whatever the figure; 1.249724970700649 tells a person nothing more than 1.250."""

import ast
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from features.figure import figure, named_figures
from features.profile import DayProfile
from features.schema import Schema
from features.tasks import TaskConfig
from pipeline.config.daily import GateConfig, PreflightConfig
from pipeline.daily.gate import check_model
from pipeline.daily.preflight import check_profile
from pipeline.evaluation.metrics import TaskMetrics

ROOT = Path(__file__).parents[1]
SCHEMA = Schema.model_validate(
    {
        "tables": [{"name": "user", "num_rows": 10, "dim": 4}],
        "features": [{"kind": "id", "name": "user", "table": "user"}],
        "tasks": [{"name": "ctr", "label": "click"}],
    }
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.249724970700649, "1.250"),
        (0.7, "0.7000"),
        (0.0, "0.000"),
        (-0.123456, "-0.1235"),
        (12.3456, "12.35"),
        (999.96, "1,000"),
        (999.94, "999.9"),
        (1234567.8, "1,235,000"),
        (1.23456e-7, "1.235e-07"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_a_figure(value: float, expected: str) -> None:
    """Catches sixteen digits, `1000.`, and an exponent where a person expects a number."""
    assert figure(value) == expected


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_it_is_the_figure_to_four_digits(value: float) -> None:
    """Catches a rounding to so many places that a small figure becomes 0."""
    assert float(figure(value).replace(",", "")) == pytest.approx(value, rel=5.1e-4)


def test_figures_by_name() -> None:
    """Catches a mapping that is printed as Python prints it."""
    assert named_figures({"ctr": math.nan, "vtr": 1 / 3}) == "ctr nan, vtr 0.3333"


def digits(text: str) -> int:
    """Return the largest number of digits of a number with a point in a text, without zeros at its beginning."""
    numbers = re.findall(r"\d[\d,]*\.\d+", text)
    return max((len(re.sub(r"^0+", "", re.sub(r"[.,]", "", number))) for number in numbers), default=0)


AWKWARD = {"auc": 1 / 3, "calibration": 1.629629629, "mean_prediction": 0.3333333333, "rows": 9999, "positives": 4999}
PARENT = {"auc": 0.777777777, "calibration": 1.249724970700649, "mean_prediction": 0.123456789}


def test_what_the_gate_and_preflight_say() -> None:
    """Catches `calibration 1.629 on the hold-out, its parent 1.249724970700649`."""
    new = {"ctr": {"kind": "binary"} | AWKWARD}
    parent = {"ctr": new["ctr"] | PARENT}
    said = [found.text for found in check_model(GateConfig(), new, [parent] * 5, new, parent)]
    assert len(said) == 4, said
    usual = [DayProfile(9999, {"age": 333}, {"ctr": (9999, 3333.0, 3333.0)})] * 5
    today = DayProfile(3333, {"age": 1111}, {"ctr": (3333, 2777.0, 2777.0)})
    said += [found.text for found in check_profile(PreflightConfig(), SCHEMA, today, usual)]
    assert len(said) == 7, said
    assert [text for text in said if digits(text) > 4] == []
    assert digits("its parent 1.249724970700649") == 16  # the negative control


def test_what_an_evaluation_says() -> None:
    """Catches a tensor in a message: `a weight is -0.3333333432674408`, and `tensor(...)`."""
    metrics = TaskMetrics(TaskConfig.model_validate({"name": "ctr", "label": "click"}))
    half = torch.full((2,), 0.5)
    with pytest.raises(ValueError, match=r"a weight is -0.3333: ") as refused:
        metrics.update(half, half * 0, half * 0, torch.ones(2, dtype=torch.bool), -half / 1.5)
    assert digits(str(refused.value)) <= 4


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the format of each formatted value in an error, a finding or a log line of a source file."""
    for node in ast.walk(ast.parse(path.read_text())):
        is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        if isinstance(node, ast.Raise | ast.Yield) or (is_call and "logger" in ast.unparse(node).split("(")[0]):
            for value in ast.walk(node):
                if isinstance(value, ast.FormattedValue) and value.format_spec is not None:
                    yield value.lineno, ast.unparse(value.format_spec)


def test_one_formatter() -> None:
    """Catches a message with a number of digits of its own; `g` is for settings, as they were written."""
    rooms = ("features", "models", "pipeline", "jobs")
    files = [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]
    found = [(path, line, spec) for path in files for line, spec in messages(path)]
    assert len(found) > 20
    own = [
        f"{path.relative_to(ROOT)}:{line} {spec}" for path, line, spec in found if re.search(r"\.[1-9]\d*[efg]", spec)
    ]
    assert own == []
