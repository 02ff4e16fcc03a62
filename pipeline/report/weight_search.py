"""A search for exponents as files: the section of the config, the Pareto front as a picture, and all trials."""

import json
from itertools import combinations
from typing import Any

from features.errors import ConfigError
from pipeline.config.yaml_text import to_yaml
from pipeline.scoring.weight_search import Search, Trial
from pipeline.storage.files import Storage

_KINDS = {"trial": "#bbbbbb", "on the front": "#0072B2", "present": "#000000", "chosen": "#D55E00"}


def empty_target(out: str) -> Storage:
    """Return the storage of a directory that may be written and is empty.

    Raises:
        ConfigError: It is not.
    """
    target = Storage(out)
    if target.names():
        raise ConfigError(f"{target.url} is not empty: name another directory, or remove what is there")
    target.check_writable()
    return target


def write_search(search: Search, out: Storage) -> dict[str, Any]:
    """Write `trials.json`, `front.svg` and, at last, `chosen.yaml`; return the figures of the command's JSON line."""
    trials = {"objectives": [str(one) for one in search.objectives], "start": _trial(search.start)}
    trials |= {"chosen": _trial(search.chosen), "front": [_trial(one) for one in search.front]}
    trials |= {"trials": [_trial(one) for one in search.trials]}
    out.write("trials.json", (json.dumps(trials, indent=1) + "\n").encode())
    out.write("front.svg", front_svg(search).encode())
    out.write("chosen.yaml", ranking_yaml(search).encode())
    return {
        "result": "kept" if search.chosen is search.start else "improved",
        "exponents": search.chosen.exponents,
        "before": {str(one): value for one, value in search.before.items()},
        "after": {str(one): value for one, value in search.after.items()},
        "trials": len(search.trials),
        "on_front": len(search.front),
        "rows": search.num_rows,
        "share_of_groups": search.share,
        "out": out.url,
    }


def _trial(trial: Trial) -> dict[str, Any]:
    return {"exponents": trial.exponents, "values": list(trial.values), "feasible": trial.feasible}


def ranking_yaml(search: Search) -> str:
    """Return the section `ranking` with the chosen exponents, as a config takes it."""
    return to_yaml({"ranking": search.chosen_ranking.model_dump(mode="json", exclude_defaults=True)})


def search_table(search: Search) -> str:
    """Return a table of every metric before and after, and one of the exponents."""
    lines = [f"{'metric':<24}{'before':>10}{'after':>10}{'difference':>12}"]
    for one, before in search.before.items():
        after = search.after[one]
        lines.append(f"{one!s:<24}{before:>10.5f}{after:>10.5f}{after - before:>+12.5f}")
    lines += ["", f"{'exponent':<24}{'before':>10}{'after':>10}"]
    for task, before in search.start.exponents.items():
        lines.append(f"{task:<24}{before:>10.4g}{search.chosen.exponents[task]:>10.4g}")
    if search.chosen is search.start:
        lines += ["", "no trial was better in one objective and worse in none: the present exponents stay"]
    return "\n".join(lines)


def front_svg(search: Search) -> str:
    """Draw every pair of objectives, or the one objective by trial, with the front and the chosen point."""
    import altair as alt
    import vl_convert

    names = [str(one) for one in search.objectives]
    pairs = list(combinations(range(len(names)), 2)) or [(-1, 0)]
    rows = _points(search)
    panels = [_panel(alt, rows, pair, ["trial", *names]) for pair in pairs]
    chart = alt.concat(*panels, columns=2).configure_view(stroke="#cccccc")
    return vl_convert.vegalite_to_svg(chart.to_dict())


def _points(search: Search) -> list[dict[str, Any]]:
    """Return the points that are drawn, the marked ones last; a trial that breaks a constraint is left out."""
    front = {id(trial) for trial in search.front}
    points = [
        _point(number, trial, "on the front" if id(trial) in front else "trial")
        for number, trial in enumerate(search.trials)
        if trial.feasible
    ]
    points.sort(key=lambda point: point["kind"] == "on the front")
    chosen = next((number for number, trial in enumerate(search.trials) if trial is search.chosen), 0)
    return [*points, _point(0, search.start, "present"), _point(chosen, search.chosen, "chosen")]


def _point(number: int, trial: Trial, kind: str) -> dict[str, Any]:
    return {"kind": kind, "v-1": number} | {f"v{place}": value for place, value in enumerate(trial.values)}


def _panel(alt: Any, rows: list[dict[str, Any]], pair: tuple[int, int], names: list[str]) -> Any:
    x, y = (
        axis(f"v{place}:Q", title=names[place + 1], scale=alt.Scale(zero=False))
        for axis, place in zip((alt.X, alt.Y), pair, strict=True)
    )
    colours = alt.Scale(domain=list(_KINDS), range=list(_KINDS.values()))
    colour = alt.Color("kind:N", scale=colours, legend=alt.Legend(title=None, symbolType="circle"))
    size = alt.Size("kind:N", scale=alt.Scale(domain=list(_KINDS), range=[25, 60, 140, 140]), legend=None)
    chart = alt.Chart(alt.Data(values=rows)).mark_point(filled=True, opacity=0.9)
    return chart.encode(x=x, y=y, color=colour, size=size).properties(width=300, height=240)
