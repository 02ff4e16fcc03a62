"""Slot bias: a logit of the item's slot, learned in training and left out in scoring.

Source: Zhao et al., "Recommending What Video to Watch Next", RecSys 2019: a shallow tower for selection bias.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from features.declaration import Declaration
from features.errors import ConfigError, DataError
from features.schema import Schema
from features.tables import VocabularyConfig
from models.parameter_names import ParameterPart
from models.sizes import Count
from models.tasks import TaskHead

if TYPE_CHECKING:  # the configuration imports this file, and must not import TorchRec
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

# Every worker holds all logits, and their gradient is summed over the workers at every step.
_MAX_LOGITS = 1_000_000


class Device(NamedTuple):
    """An id feature that slots are crossed with: its key among the F keys of a batch, F, and its table's rows."""

    key: int
    num_keys: int
    num_rows: int


class SlotBias(nn.Module):
    """logit_k = main_k(x) + shallow_k(slot, device) for some of the towers.

    Our reading of the shallow tower, which the source draws as a layer over one-hot inputs: one logit per pair of a
    slot and a device, from 0. A missing slot has logits of its own, trained on the rows with an unknown or dropped
    slot; scoring adds these. The last slot stands for all beyond it, and a slot before the first is missing. Only the
    slot is dropped, never the device, for each row independently, by the process' generator.

    Args:
        columns: Outputs to add the logits to.
        num_slots: Number of slots with a logit of their own.
        device: Feature that slots are crossed with; None: the slot alone.
        first_slot: The slot where counting starts.
        dropout: Probability that a row's slot counts as missing, in training.
        scores_known: True to use known slots in evaluation mode; else all count as missing.

    Attributes:
        weight: (tower, 1 + slot, 1 + device), the missing ones first.
    """

    columns: Tensor

    def __init__(
        self,
        columns: Sequence[int],
        num_slots: int,
        device: Device | None = None,
        *,
        first_slot: int = 0,
        dropout: float = 0.0,
        scores_known: bool = False,
    ) -> None:
        super().__init__()
        self.num_slots, self.first_slot, self.dropout, self.scores_known = num_slots, first_slot, dropout, scores_known
        self.device, num_devices = device, device.num_rows if device else 0
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.weight = nn.Parameter(torch.zeros(len(columns), 1 + num_slots, 1 + num_devices))

    def forward(
        self, outputs: Float[Tensor, "batch output"], slot: Int[Tensor, " batch"] | None, sparse: "KeyedJaggedTensor"
    ) -> Float[Tensor, "batch output"]:
        """Add the logits to the towers' outputs.

        Args:
            outputs: The towers' outputs.
            slot: The items' slots, -1 where unknown; None: all unknown.
            sparse: `KeyedJaggedTensor` with F keys; the device's bags have one id or none.
        """
        index = self._slot_rows(torch.full_like(outputs[:, 0], -1, dtype=torch.long) if slot is None else slot.long())
        if self.device is not None:
            index = index * self.weight.shape[2] + self._device_rows(self.device, sparse)
        return outputs.index_add(1, self.columns, self.weight.flatten(1).index_select(1, index).t())

    def _slot_rows(self, slot: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Return 0 for a missing slot, 1 for the first, and so on."""
        if not self.training and not self.scores_known:
            return torch.zeros_like(slot)
        place = torch.where(slot < 0, -1, slot - self.first_slot)
        rows = place.clamp(-1, self.num_slots - 1) + 1
        if self.training and self.dropout > 0:
            rows = rows.masked_fill(torch.rand_like(slot, dtype=torch.float32) < self.dropout, 0)
        return rows

    @staticmethod
    def _device_rows(device: Device, sparse: "KeyedJaggedTensor") -> Int[Tensor, " batch"]:
        """Return 0 for an empty bag, 1 + id for others."""
        of_key = (part.view(device.num_keys, -1)[device.key] for part in (sparse.lengths(), sparse.offsets()[:-1]))
        lengths, starts = of_key
        # Padded by one, since an empty bag may start where the values end.
        ids = F.pad(sparse.values(), (0, 1)).index_select(0, starts)
        return torch.where(lengths > 0, ids + 1, 0)

    def parts(self, towers: Sequence[str], feature: str | None) -> list[ParameterPart]:
        """Name the parts; see `models.parameter_names`.

        Args:
            towers: Names of the towers with these logits.
            feature: Name of the device feature and all that its ids' rows depend on.
        """
        num_devices = self.weight.shape[2] - 1
        last = self.first_slot + self.num_slots - 1
        slots = ["missing", *map(str, range(self.first_slot, last)), f"{last} and beyond"]
        of_slots = tuple(("slots of the slot bias", slot) for slot in slots)
        of_devices = (
            ("", "missing"),
            *((f"devices of the slot bias, {feature}", f"{device} of {num_devices}") for device in range(num_devices)),
        )
        owners = [f"slot bias of task {tower}" for tower in towers]
        return [
            ParameterPart(self.weight, index, owner, "", (((owner, ""),), of_slots, of_devices))
            for index, owner in enumerate(owners)
        ]


class SlotBiasConfig(Declaration):
    """A logit of the slot, added to the tasks' logits in training.

    Args:
        tasks: The tasks (or further towers) with a slot bias: those that depend on the place on the page, such as
            clicks. Composed tasks are refused; they take it from their towers.
        num_slots: Number of slots with a logit of their own.
        first_slot: The slot where counting starts: 0, or 1 where the log counts so.
        beyond_last: Slots of the log beyond the last one: `refuse` the day, or let them `share` the last one's logit.
        feature: An id feature of few rows, such as the device, with logits of its own per row; absent: none.
        dropout: Probability that a row's slot counts as missing, in training.
        when_scoring: `missing`: evaluations and scores ignore the slot, as if it were unknown; `known`: they use the
            log's slot where present.
    """

    tasks: list[str] = Field(min_length=1)
    num_slots: Count
    first_slot: Literal[0, 1] = 0
    beyond_last: Literal["refuse", "share"] = "refuse"
    feature: str | None = None
    dropout: float = Field(default=0.1, ge=0, lt=1)
    when_scoring: Literal["missing", "known"] = "missing"

    def build(self, schema: Schema, towers: Sequence[TaskHead]) -> SlotBias:
        """Build the module for towers in this order.

        Raises:
            ConfigError: A slot, task or feature of that kind is missing, or the pairs are too many.
        """
        if schema.slot is None:
            raise ConfigError("slot_bias: the schema names no column of slots: declare schema.slot")
        self._check_tasks(schema, towers)
        starts = {tower.name: sum(t.num_outputs for t in towers[:index]) for index, tower in enumerate(towers)}
        device = None if self.feature is None else self._device(schema, self.feature)
        num_logits = len(self.tasks) * (1 + self.num_slots) * (1 + (device.num_rows if device else 0))
        if num_logits > _MAX_LOGITS:
            raise ConfigError(
                f"slot_bias: {num_logits:,} logits of slots and rows of {self.feature!r} are more than "
                f"{_MAX_LOGITS:,}: choose a feature of fewer rows"
            )
        scores_known = self.when_scoring == "known"
        columns = [starts[name] for name in self.tasks]
        options = {"first_slot": self.first_slot, "dropout": self.dropout, "scores_known": scores_known}
        return SlotBias(columns, self.num_slots, device, **options)

    def check_slots(self, smallest: int, largest: int) -> None:
        """Check that the slots of a log are those that the configuration declares.

        Args:
            smallest: Smallest known slot of the log.
            largest: Largest known slot of the log.

        Raises:
            DataError: A slot lies outside of the declared range.
        """
        last = self.first_slot + self.num_slots - 1
        if smallest < self.first_slot or (largest > last and self.beyond_last == "refuse"):
            raise DataError(
                f"the log's slots are {smallest} to {largest}, model.slot_bias has {self.first_slot} to {last}: set "
                "beyond_last: share to let the last one stand for all beyond it, or on a new line first_slot and "
                "num_slots to the log's"
            )

    def parts(self, bias: SlotBias, schema: Schema) -> list[ParameterPart]:
        """Name the parts of a built slot bias; see `models.parameter_names`."""
        source = next((f.source for f in schema.sparse_features if f.name == self.feature), None)
        return bias.parts(self.tasks, f"column {source}")

    def _check_tasks(self, schema: Schema, towers: Sequence[TaskHead]) -> None:
        kinds = {tower.name: tower.kind for tower in towers}
        for index, name in enumerate(self.tasks):
            if name in schema.task_names and name not in kinds:
                raise ConfigError(f"slot_bias.tasks: {name!r} is composed in entire_space: name towers of it instead")
            if name not in kinds:
                near = get_close_matches(name, kinds, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {list(kinds)}"
                raise ConfigError(f"slot_bias.tasks: there is no task {name!r}: {hint}")
            if kinds[name] == "multiclass":
                raise ConfigError(f"slot_bias.tasks: {name!r} is multiclass: a slot has one logit, leave it out")
            if name in self.tasks[:index]:
                raise ConfigError(f"slot_bias.tasks: {name!r} is named twice: once is enough")

    @staticmethod
    def _device(schema: Schema, name: str) -> Device:
        ids = [feature.name if feature.kind == "id" else None for feature in schema.sparse_features]
        if name not in ids:
            raise ConfigError(
                f"slot_bias.feature is {name!r}, which is no id feature; those are {[*filter(None, ids)]}"
            )
        found = ids.index(name)
        table = next(table for table in schema.tables if table.name == schema.sparse_features[found].table)
        if isinstance(table.id_mapping, VocabularyConfig):
            raise ConfigError(
                f"slot_bias.feature {name!r} reads table {table.name!r}, which gives its rows to other ids in time: "
                "declare a hashed table for it"
            )
        return Device(found, len(ids), table.num_rows)
