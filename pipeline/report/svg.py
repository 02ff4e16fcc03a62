"""Charts as SVG text: a scatter with its four quadrants, and bars with their deviation. Every chart is drawn here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

# Okabe and Ito's colours, distinct for colour-blind eyes too; then again, with another mark.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_TEXT, _GRID = "#333", "#ddd"
_SIZE, _MARGIN = 340, 62

PlotArea = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Point:
    """A mark of a scatter, with the half-widths of its cross.

    Args:
        name: Name of the mark.
        x: Coordinate to the right.
        y: Coordinate upwards.
        dx: Spread of x; 0: none.
        dy: Spread of y; 0: none.
    """

    name: str
    x: float
    y: float
    dx: float = 0.0
    dy: float = 0.0


def scatter(points: Sequence[Point], x_label: str, y_label: str, quadrants: tuple[str, str, str, str]) -> str:
    """Draw points around the origin.

    Args:
        points: At least one.
        x_label: Label below.
        y_label: Label on the left.
        quadrants: Names of the quadrants: upper right, upper left, lower left, lower right.

    Returns:
        An `<svg>` element.
    """
    reach = max((abs(p.x) + p.dx, abs(p.y) + p.dy)[axis] for p in points for axis in (0, 1)) * 1.15 or 1.0
    middle, half = _SIZE / 2, _SIZE / 2 - _MARGIN / 2

    def place(x: float, y: float) -> tuple[float, float]:
        return middle + x / reach * half, middle - y / reach * half

    inside = [_line((middle - half, middle), (middle + half, middle), _GRID)]
    inside.append(_line((middle, middle - half), (middle, middle + half), _GRID))
    corners = ((1, 1, "end"), (-1, 1, "start"), (-1, -1, "start"), (1, -1, "end"))
    for (x, y, anchor), name in zip(corners, quadrants, strict=True):
        inside.append(_text(middle + x * half, middle - y * (half - 4) + 3, name, anchor, "#888", 10))
    for tick in (-reach / 1.15, reach / 1.15):
        inside.append(_text(place(tick, 0)[0], middle + 12, f"{tick:+.4f}", "middle", "#888", 9))
        inside.append(_text(middle - 4, place(0, tick)[1] + 3, f"{tick:+.4f}", "end", "#888", 9))
    for index, point in enumerate(points):
        inside += _mark(index, point, place)
    inside.append(_text(middle, _SIZE - 6, x_label, "middle"))
    inside.append(_text(12, middle, y_label, "middle", turned=True))
    legend = [_legend(index, point.name, 14 + 16 * index) for index, point in enumerate(points)]
    height = max(_SIZE, 20 + 16 * len(points))
    return _svg(_SIZE + 150, height, [*inside, *legend])


def _mark(index: int, point: Point, place: PlotArea) -> list[str]:
    x, y = place(point.x, point.y)
    right, top = place(point.x + point.dx, point.y + point.dy)
    colour = _colour(index)
    cross = [_line((2 * x - right, y), (right, y), colour)] if point.dx else []
    cross += [_line((x, 2 * y - top), (x, top), colour)] if point.dy else []
    return [*cross, _shape(index, x, y, point.name)]


def _shape(index: int, x: float, y: float, name: str) -> str:
    title = f"<title>{escape(name)}</title>"
    if index < len(_COLOURS):
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{_colour(index)}">{title}</circle>'
    return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{_colour(index)}">{title}</rect>'


def _legend(index: int, name: str, y: float) -> str:
    return _shape(index, _SIZE + 12, y, name) + _text(_SIZE + 22, y + 4, name, "start", size=11)


def bars(title: str, names: Sequence[str], means: Sequence[float], deviations: Sequence[float]) -> str:
    """Draw shares between 0 and 1, with a whisker of one deviation to each side.

    Args:
        title: Title above the bars.
        names: Names of the bars.
        means: Lengths of the bars.
        deviations: Half-lengths of the whiskers.

    Returns:
        An `<svg>` element.
    """
    left, length, step = 12 + 6 * max(map(len, names), default=0), 200, 18
    found = [_text(0, 12, title, "start", size=12)]
    for index, (name, mean, deviation) in enumerate(zip(names, means, deviations, strict=True)):
        y = 22 + step * index
        low, high = max(0.0, mean - deviation), min(1.0, mean + deviation)
        found.append(_text(left - 6, y + 10, name, "end", size=11))
        found.append(f'<rect x="{left}" y="{y}" width="{mean * length:.1f}" height="12" fill="{_COLOURS[0]}"/>')
        found.append(_line((left + low * length, y + 6), (left + high * length, y + 6), _TEXT))
        found.append(_text(left + length + 8, y + 10, f"{mean:.3f} ± {deviation:.3f}", "start", size=10))
    return _svg(left + length + 110, 26 + step * len(names), found)


def _svg(width: float, height: float, inside: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="sans-serif" role="img">{"".join(inside)}</svg>'
    )


def _line(start: tuple[float, float], end: tuple[float, float], colour: str) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(
    x: float, y: float, text: str, anchor: str, colour: str = _TEXT, size: int = 12, *, turned: bool = False
) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}"{turn}>'
        f"{escape(text)}</text>"
    )


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]
