"""Sequence part of DUPN: a property-gated LSTM over a user's events, and attention by user and query.

Source: Ni et al., "Perceive Your Users in Depth: Learning Universal User Representations from Multiple E-commerce
Tasks", KDD 2018.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from models.parameter_names import Labels, ParameterPart, units_of

_GATES = ("input", "forget", "output", "candidate")
_PATH = "events > property-gated LSTM"


@dataclass(frozen=True, slots=True)
class EventSteps:
    """The events of B rows, step by step, for a recurrence.

    Args:
        events: Index of each of the E events among entries stored row by row.
        rows: Row of each event.
        places: Place of each event within its row.
        counts: Number of events of each place; at least one place.
        is_empty: True for rows without events.
        is_event: True for an event, False for a place that has none; None: all are events.
    """

    events: Int[Tensor, " event"]
    rows: Int[Tensor, " event"]
    places: Int[Tensor, " event"]
    counts: list[int]
    is_empty: Bool[Tensor, " batch"]
    is_event: Bool[Tensor, " event"] | None = None

    @classmethod
    def packed(cls, lengths: Int[Tensor, " batch"]) -> "EventSteps":
        """Order the events of rows with the given lengths, without padding or masks.

        Rows are ordered by decreasing length: the rows of a step are the first rows of the step before. The sizes are
        read from the tensor, so a GPU's host would wait for it.
        """
        lengths = lengths.long()
        order = lengths.argsort(descending=True, stable=True)
        longest = max(1, int(lengths.max())) if len(lengths) else 1
        goes_on = lengths[order] > torch.arange(longest, device=lengths.device).unsqueeze(1)
        places, ranked = goes_on.nonzero(as_tuple=True)
        rows = order[ranked]
        starts = lengths.cumsum(0) - lengths
        return cls(starts[rows] + places, rows, places, goes_on.sum(1).tolist(), lengths == 0)

    @classmethod
    def padded(cls, lengths: Int[Tensor, " batch"], num_places: int, num_entries: int) -> "EventSteps":
        """Give every row the same number of places; no size depends on the lengths, so no host waits for a GPU.

        Args:
            lengths: Number of events of each row, at most `num_places`.
            num_places: Places of a row, at least one.
            num_entries: Number of entries; a place without an event has this index.
        """
        lengths = lengths.long()
        place = torch.arange(num_places, device=lengths.device).unsqueeze(1)
        is_event = place < lengths
        events = torch.where(is_event, lengths.cumsum(0) - lengths + place, num_entries).flatten()
        rows = torch.arange(len(lengths), device=lengths.device).repeat(num_places)
        places = place.expand(-1, len(lengths)).flatten()
        return cls(events, rows, places, [len(lengths)] * num_places, lengths == 0, is_event.flatten())

    def take(self, entries: Float[Tensor, "entry width"]) -> Float[Tensor, "event width"]:
        """Return the entries of the events; zeros for a place without one."""
        return (entries if self.is_event is None else F.pad(entries, (0, 0, 0, 1))).index_select(0, self.events)


class PropertyGatedLSTM(nn.Module):
    """LSTM whose gates also read the event's properties; the candidate does not.

        i_t = s(Wei e_t + Wpi p_t + Whi h_{t-1} + bi)          f_t, o_t alike
        c_t = f_t * c_{t-1} + i_t * tanh(Wec e_t + Whc h_{t-1} + bc)
        h_t = o_t * tanh(c_t)                                  h_0 = c_0 = 0

    One matrix product projects the events of all steps; each step adds one product of h.

    Args:
        item_width: Width of e_t.
        property_width: Width of p_t.
        width: Width of h_t and c_t.

    Attributes:
        items: (4 width, item_width), rows in the order input gate, forget gate, output gate, candidate.
        properties: (3 width, property_width), for the gates alone.
        hidden: (4 width, width).
        bias: (4 width,).
    """

    def __init__(self, item_width: int, property_width: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.items = nn.Parameter(torch.empty(4 * width, item_width))
        self.properties = nn.Parameter(torch.empty(3 * width, property_width))
        self.hidden = nn.Parameter(torch.empty(4 * width, width))
        self.bias = nn.Parameter(torch.empty(4 * width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters as nn.LSTM does."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(self.width), 1 / math.sqrt(self.width))

    def forward(
        self, items: Float[Tensor, "event item"], properties: Float[Tensor, "event property"], counts: Sequence[int]
    ) -> Float[Tensor, "event width"]:
        """Compute h_t of every event.

        Args:
            items: e_t of all events, in the order of `EventSteps`.
            properties: p_t of all events.
            counts: As in `EventSteps`.
        """
        weight = torch.cat([self.items, F.pad(self.properties, (0, 0, 0, self.width))], dim=1)
        projected = F.linear(torch.cat([items, properties], dim=1), weight, self.bias)
        h = c = projected.new_zeros(counts[0], self.width)
        states = []
        for of_step in projected.split(list(counts)):
            h, c = h[: len(of_step)], c[: len(of_step)]
            i, f, o, candidate = (of_step + h @ self.hidden.t()).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * candidate.tanh()
            h = o.sigmoid() * c.tanh()
            states.append(h)
        return torch.cat(states)

    def parts(self, items: Labels, properties: Labels) -> list[ParameterPart]:
        """Name the parts; see `models.parameter_names`.

        Args:
            items: Labels of e_t.
            properties: Labels of p_t.
        """
        units = units_of(_PATH, self.width)
        rows = tuple((f"{gate} gate of {_PATH}", unit) for gate in _GATES for _, unit in units)
        owner = "property-gated LSTM"
        return [
            ParameterPart(self.items, 0, owner, "items", (rows, items)),
            ParameterPart(self.properties, 0, owner, "properties", (rows[: 3 * self.width], properties)),
            ParameterPart(self.hidden, 0, owner, "hidden", (rows, units)),
            ParameterPart(self.bias, 0, owner, "bias", (rows,)),
        ]


class EventAttention(nn.Module):
    """a_t = softmax_t(att(h_t, q, u, p_t)) over a row's own events; att is an MLP with ReLU and a scalar output.

    Args:
        event_width: Width of h_t and p_t, side by side.
        row_width: Width of q and u, side by side; 0 without either.
        layers: Widths of the hidden layers, at least one.
    """

    def __init__(self, event_width: int, row_width: int, layers: Sequence[int]) -> None:
        super().__init__()
        self.event_width = event_width
        pairs = pairwise([event_width + row_width, *layers])
        # No output bias: it would be the same for all events of a row, and a softmax ignores a common term.
        end = nn.Linear([event_width + row_width, *layers][-1], 1, bias=False)
        self.layers = nn.ModuleList([*(nn.Linear(*pair) for pair in pairs), end])

    def forward(
        self, events: Float[Tensor, "event event_width"], rows: Float[Tensor, "batch row_width"], steps: EventSteps
    ) -> Float[Tensor, " event"]:
        """Compute the weights of the events; the weights of a row's events sum to 1."""
        first, *rest = self.layers
        assert isinstance(first, nn.Linear)
        of_rows = F.linear(rows, first.weight[:, self.event_width :])  # once per row, not per event
        values = F.linear(events, first.weight[:, : self.event_width], first.bias) + of_rows.index_select(0, steps.rows)
        for layer in rest:
            values = layer(values.relu())
        where, values = (steps.rows, steps.places), values.squeeze(1)
        if steps.is_event is not None:
            values = values.masked_fill(~steps.is_event, -torch.inf)
        logits = values.new_full((len(rows), len(steps.counts)), -torch.inf).index_put(where, values)
        # A row without events would be a softmax over nothing: NaN in an unused gradient.
        shares = logits.masked_fill(steps.is_empty.unsqueeze(1), 0).softmax(1)[where]
        return shares if steps.is_event is None else shares.masked_fill(~steps.is_event, 0)

    def parts(self, events: Labels, rows: Labels) -> list[ParameterPart]:
        """Name the parts; see `models.parameter_names`.

        Args:
            events: Labels of h_t and p_t.
            rows: Labels of q and u.
        """
        found, inputs, path = [], (*events, *rows), f"{_PATH} > attention"
        for number, layer in enumerate(self.layers, start=1):
            width = len(layer.get_parameter("weight"))
            path += f" > {width}"
            units = units_of(path, width)
            for name, parameter in layer.named_parameters():
                axes = (units, inputs) if name == "weight" else (units,)
                found.append(ParameterPart(parameter, 0, "attention over events", f"layer {number} {name}", axes))
            inputs = units
        return found


class DUPN(nn.Module):
    """rep_s = sum_t a_t h_t: a user's events as one vector; zeros without events.

    Args:
        item_width: Width of an item's embedding e_t.
        property_width: Width of the embeddings p_t of its properties, side by side.
        user_width: Width of u, the user's profile.
        query_width: Width of q, the query.
        max_events: Largest number of events of a row.
        hidden: Width of h_t, and of rep_s.
        attention: Widths of the attention's hidden layers.
    """

    def __init__(
        self,
        item_width: int,
        property_width: int,
        user_width: int,
        query_width: int,
        max_events: int,
        hidden: int = 128,
        attention: Sequence[int] = (128, 64),
    ) -> None:
        super().__init__()
        self.max_events = max_events
        self.lstm = PropertyGatedLSTM(item_width, property_width, hidden)
        self.attention = EventAttention(hidden + property_width, query_width + user_width, attention)

    def forward(
        self,
        items: Float[Tensor, "entry item"],
        properties: Float[Tensor, "entry property"],
        lengths: Int[Tensor, " batch"],
        query: Float[Tensor, "batch query"],
        user: Float[Tensor, "batch user"],
    ) -> Float[Tensor, "batch hidden"]:
        """Compute rep_s of the users of B rows.

        Args:
            items: Embeddings of all rows' events, row by row, each row's in order of time.
            properties: Embeddings of the events' properties.
            lengths: Number of events of each row.
            query: q.
            user: u.
        """
        # Zero events are computed too: every rank's backward pass has the same collectives.
        steps = self.steps_of(lengths, len(items))
        properties = steps.take(properties)
        states = self.lstm(steps.take(items), properties, steps.counts)
        rows = torch.cat([query, user], dim=1)
        shares = self.attention(torch.cat([states, properties], dim=1), rows, steps)
        return states.new_zeros(len(rows), states.shape[1]).index_add(0, steps.rows, shares.unsqueeze(1) * states)

    def steps_of(self, lengths: Int[Tensor, " batch"], num_entries: int) -> EventSteps:
        """Return the events step by step: packed on a CPU; padded on a GPU, where both give equal vectors."""
        if lengths.is_cuda:
            return EventSteps.padded(lengths, self.max_events, num_entries)
        return EventSteps.packed(lengths)

    def parts(
        self, items: Labels, properties: Labels, query: Labels, user: Labels
    ) -> tuple[list[ParameterPart], Labels]:
        """Name the parts, and label what comes out; see `models.parameter_names`.

        Args:
            items: Labels of e_t.
            properties: Labels of p_t.
            query: Labels of q.
            user: Labels of u.
        """
        states = units_of(_PATH, self.lstm.width)
        of_attention = self.attention.parts((*states, *properties), (*query, *user))
        return self.lstm.parts(items, properties) + of_attention, states
