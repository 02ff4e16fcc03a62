"""Owner of every number of the dense part, so that two models can be compared part by part.

Grouped layers keep many things in one tensor (an expert, a bottom or a tower is one row), and an input column belongs
to a feature. Names and shapes of parameters do not tell them apart. So every module names its parts, and labels their
axes: parts of two models with the same name and labels are the same, in any tensor and at any index.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Label = tuple[str, str]
"""Label of each index along an axis: its owner in words (empty if irrelevant), and its number within the owner."""
Labels = tuple[Label, ...]


def units_of(path: str, width: int) -> Labels:
    """Label the units of a layer.

    Args:
        path: The layer and all layers below it. The input defines a unit: with a layer put between, no unit above it is
            the same, and so none keeps its label.
        width: Number of units.
    """
    return tuple((f"units of {path}", str(unit)) for unit in range(width))


@dataclass(frozen=True, slots=True, eq=False)
class ParameterPart:
    """Rows of a parameter with one owner.

    Args:
        parameter: The whole parameter.
        start: Index of the first row, along the first axis.
        owner: Name of the owner in words: `tower of task ctr`.
        detail: Name of the part within its owner: `layer 1 weight`.
        axes: Labels along every axis, those of the rows first.
    """

    parameter: nn.Parameter
    start: int
    owner: str
    detail: str
    axes: tuple[Labels, ...]

    @property
    def num_rows(self) -> int:
        """Number of rows of the part."""
        return len(self.axes[0])

    def of(self, tensor: Tensor) -> Tensor:
        """Return a view of the part's rows of the parameter, or of a tensor with its shape."""
        return tensor[self.start : self.start + self.num_rows]


@dataclass(frozen=True, slots=True)
class FusionParts:
    """Parts of a multi-task network, and labels of its outputs.

    Args:
        parts: Parts of all its parameters.
        outputs: For each task the labels of its representation.
        path: The layers from the input to the representations.
    """

    parts: list[ParameterPart]
    outputs: Sequence[Labels]
    path: str


Layout = Mapping[str, Sequence[ParameterPart]]
"""Parts by name of a parameter; they cover it."""


def layout_of(parameters: Mapping[str, nn.Parameter], parts: Iterable[ParameterPart]) -> Layout:
    """Map the names of a model's parameters to their parts.

    A parameter without parts is one part, which equals another only if names and shapes are equal.

    Args:
        parameters: Parameters of the dense part by name, with one axis or more.
        parts: As its modules declare them.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    found: dict[str, list[ParameterPart]] = {name: [] for name in parameters}
    for part in parts:
        found[names[id(part.parameter)]].append(part)
    for name, parameter in parameters.items():
        found[name] = found[name] or [_undeclared(name, parameter)]
        assert sum(part.num_rows for part in found[name]) == len(parameter), name
        for part in found[name]:
            assert tuple(map(len, part.axes[1:])) == parameter.shape[1:], (name, part.owner, part.detail)
    return found


def _undeclared(name: str, parameter: nn.Parameter) -> ParameterPart:
    axes = [tuple((name, f"{index} of {size}") for index in range(size)) for size in parameter.shape]
    return ParameterPart(parameter, 0, name, "", tuple(axes))


@dataclass(frozen=True, slots=True)
class Match:
    """A part that an old and a new model share, and the indices of their common labels.

    Args:
        source: The old parameter's name.
        target: The new parameter's name.
        old: The part of the old model.
        new: The part of the new model.
        places: For each axis the indices of the common labels in the old part and in the new one.
    """

    source: str
    target: str
    old: ParameterPart
    new: ParameterPart
    places: tuple[tuple[list[int], list[int]], ...]

    @property
    def num_elements(self) -> int:
        """Number of elements that both models share."""
        return math.prod(len(old) for old, _ in self.places)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy the common elements from a tensor of the old parameter's shape into one of the new one's."""
        old, new = (_grid([pair[side] for pair in self.places]) for side in (0, 1))
        self.new.of(target)[new] = self.old.of(source)[old].to(target)


def _grid(indices: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
    """Return index tensors that select the block of the given indices along every axis."""
    return torch.meshgrid(*map(torch.tensor, indices), indexing="ij")


def match_layouts(old: Layout, new: Layout) -> list[Match]:
    """Find the common parts of two models by name, and in them the indices with equal labels."""
    known = {(part.owner, part.detail): (name, part) for name, parts in old.items() for part in parts}
    matches = []
    for target, parts in new.items():
        for part in parts:
            source, other = known.get((part.owner, part.detail), (None, None))
            if source is None or other is None or len(part.axes) != len(other.axes):
                continue
            places = tuple(_common(*axes) for axes in zip(other.axes, part.axes, strict=True))
            if all(in_old for in_old, _ in places):
                matches.append(Match(source, target, other, part, places))
    return matches


def _common(old: Labels, new: Labels) -> tuple[list[int], list[int]]:
    where = {label: index for index, label in enumerate(old)}
    assert len(where) == len(old), "two indices of one label"
    pairs = [(where[label], index) for index, label in enumerate(new) if label in where]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def copy_matches(matches: Iterable[Match], sources: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
    """Copy the common parts of two models; the rest of the targets is unchanged.

    Args:
        matches: Matches of the two models' layouts.
        sources: Weights, or tensors of the same shape, by the old parameters' names. A tensor of one number (Adam's
            step count) is copied if any part of the parameter is; from several, the largest.
        targets: Tensors by the new parameters' names; written to.
    """
    counts: dict[str, Tensor] = {}
    for match in matches:
        source, target = sources[match.source], targets[match.target]
        if target.dim():
            match.copy(source, target)
        else:
            counts[match.target] = torch.maximum(source, counts.get(match.target, source))
    for name, count in counts.items():
        targets[name].copy_(count)


@dataclass(frozen=True, slots=True)
class LayoutChange:
    """Fate of a model's parts in another model, in words and in numbers of parameters.

    Args:
        kept: Parts of both models; a partly kept part with its numbers of parameters.
        new: Parts of the new model only.
        dropped: Parts of the old model only.
        num_kept: Number of parameters in both.
        num_new: Number of parameters in the new model only.
        num_dropped: Number of parameters in the old model only.
    """

    kept: list[str]
    new: list[str]
    dropped: list[str]
    num_kept: int
    num_new: int
    num_dropped: int


def compare_layouts(old: Layout, new: Layout, matches: Sequence[Match]) -> LayoutChange:
    """Describe the common parts of two models by owner, and by feature and unit, which have a part in many owners."""
    kept: Counter[str] = Counter()
    for match in matches:
        kept[match.new.owner] += match.num_elements
    before, after = _sizes(old), _sizes(new)
    of_axes = [axis for match in matches for axis in zip(match.new.axes, match.places, strict=True)]
    kept_labels = {labels[place] for labels, (_, places) in of_axes for place in places}
    unnamed = {"", *before, *after}
    return LayoutChange(
        kept=[f"{o} ({kept[o]} of {size})" if kept[o] < size else o for o, size in after.items() if kept[o]],
        new=[*(owner for owner in after if not kept[owner]), *_groups(new, kept_labels, unnamed)],
        dropped=[*(owner for owner in before if not kept[owner]), *_groups(old, kept_labels, unnamed)],
        num_kept=kept.total(),
        num_new=sum(after.values()) - kept.total(),
        num_dropped=sum(before.values()) - kept.total(),
    )


def _sizes(layout: Layout) -> dict[str, int]:
    """Return the number of parameters of each owner."""
    sizes: Counter[str] = Counter()
    for part in (part for parts in layout.values() for part in parts):
        sizes[part.owner] += math.prod(map(len, part.axes))
    return dict(sizes)


def _groups(layout: Layout, kept: set[Label], unnamed: set[str]) -> list[str]:
    """Return the owners of labels that are not all kept, apart from those named otherwise."""
    parts = (part for parts in layout.values() for part in parts)
    labels = dict.fromkeys(label for part in parts for axis in part.axes for label in axis)
    counts: dict[str, list[int]] = {}
    for label in labels:
        count = counts.setdefault(label[0], [0, 0])
        count[0] += label not in kept
        count[1] += 1
    named = ((group, *count) for group, count in counts.items() if group not in unnamed and count[0])
    return [group if missing == size else f"{missing} of {size} {group}" for group, missing, size in named]
