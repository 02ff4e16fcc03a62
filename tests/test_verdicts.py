"""Verdicts of a comparison: they say what the table says, count losses too, and are not made by chance."""

from typing import Any

import numpy as np
import pytest
from outcomes import outcome_of

from pipeline.studies.gains import ModelRow, model_rows
from pipeline.studies.verdicts import verdicts

LEAST = 0.0005


def _rows(gains: dict[str, list[float]]) -> list[ModelRow]:
    """Return rows of models whose AUC of ctr exceeds the single-task model's by the given amounts, seed by seed."""
    seeds = range(len(next(iter(gains.values()))))
    outcomes: list[Any] = [outcome_of("single", seed, 0.7, 0.1) for seed in seeds]
    outcomes += [outcome_of(model, seed, 0.7 + found[seed], 0.1) for model, found in gains.items() for seed in seeds]
    return model_rows(outcomes)


def test_gains_and_losses_by_hand() -> None:
    """Catches "no model differs" beside a loss of .0098 ± .0015, and an interval that is not Student's t."""
    rows = _rows({"ple": [0.0200, 0.0210, 0.0220], "mmoe": [-0.0083, -0.0098, -0.0113], "omoe": [0.01, -0.01, 0.0]})
    # Three models: t at 1 - .05 / 6 with 2 degrees of freedom is 7.6488; the deviations are .001 and .0015.
    assert verdicts(rows, LEAST)["ctr"] == (
        "ctr: ple +0.0210 ± 0.0044 gain over training ctr alone; mmoe -0.0098 ± 0.0066 lose against training ctr alone"
    )


def test_a_task_that_only_loses() -> None:
    """Catches a task that pays for all others, and is not advised to be trained alone."""
    said = verdicts(_rows({"ple": [-0.02, -0.021, -0.022], "mmoe": [-0.0301, -0.03, -0.0302]}), LEAST)["ctr"]
    assert said == ("ctr: mmoe -0.0301 ± 0.0004, ple -0.0210 ± 0.0036 lose against training ctr alone; train it alone")


def test_a_gain_that_is_not_worth_the_name() -> None:
    """Catches "transfer helps: gains +0.0000" for a gain of 1e-5 on every seed."""
    rows = _rows({"ple": [0.00001, 0.00001, 0.000011]})
    expected = "ctr: no model differs from training ctr alone by more than chance and 0.0005 (ple +0.0000 ± 0.0000)"
    assert verdicts(rows, LEAST)["ctr"] == expected
    assert "ple +0.0000 ± 0.0000 gain over" in verdicts(rows, 0)["ctr"]


def test_one_seed_and_no_positives() -> None:
    """Catches a verdict on chance, and a metric that is not defined and counts as 0."""
    rows = model_rows([outcome_of("single", 1, None, 0.1), outcome_of("ple", 1, 0.7, 0.1)])
    said = verdicts(rows, LEAST)
    assert said["ctr"] == "the metric of ctr is not defined on these days: measure more of them"
    assert said["vcr"] == "vcr: ple +0.0000; one seed says nothing of the spread: ask for 3"
    assert verdicts(model_rows([outcome_of("ple", 1, 0.7, 0.1)]), LEAST) == {}


def test_a_model_with_one_seed_hides_no_loss() -> None:
    """Catches a best model whose metric is defined for one seed, beside which no loss is said."""
    seeds = range(3)
    outcomes: list[Any] = [outcome_of("single", seed, 0.7, 0.1) for seed in seeds]
    outcomes += [outcome_of("a", seed, 0.72 if seed == 0 else None, 0.1) for seed in seeds]
    outcomes += [outcome_of("b", seed, 0.69 + seed / 10_000, 0.1) for seed in seeds]
    assert verdicts(model_rows(outcomes), LEAST)["ctr"] == (
        "ctr: b -0.0099 ± 0.0004 lose against training ctr alone; a +0.0200 in one seed, "
        "which says nothing of the spread"
    )


@pytest.mark.parametrize("num_models", [1, 6])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_chance_is_no_verdict(num_models: int, seeds: int) -> None:
    """Catches one deviation of three seeds, which chance exceeds in 11 % of cases, before the best is picked."""
    random, tries = np.random.default_rng(7), 400
    wrong = beyond_one_deviation = 0
    for _ in range(tries):
        gains = random.normal(0, 0.01, (num_models, seeds))
        said = verdicts(_rows({f"m{index}": row.tolist() for index, row in enumerate(gains)}), LEAST)["ctr"]
        wrong += "no model differs" not in said
        beyond_one_deviation += bool((gains.mean(1) > gains.std(1, ddof=1)).any())
    assert wrong / tries < 0.08  # 5 % and the noise of 400 tries
    assert num_models == 1 or beyond_one_deviation / tries > 0.1  # the negative control
