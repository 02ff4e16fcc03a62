"""Encoded rows as numpy arrays, and as the one Arrow row that Ray Data carries."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa

from features.columns import ragged_index

_MAX_PADDING = 4  # times the ids of the bags: beyond, padding the bags to one length costs more than it saves


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """N encoded rows with F sparse features, D dense features and K tasks.

    Args:
        ids: Per sparse feature, the table rows of all N bags one after the other, int32.
        offsets: Per sparse feature, the start of each bag, int32 of shape (N + 1,).
        dense: float32 of shape (N, D); NaN where the value is missing.
        labels: float32 of shape (N, K); NaN where the row is outside the task's space.
        weights: float32 of shape (N, K), 1 outside the task's space; None where no task declares a weight.
        slots: int32 of shape (N,); -1 where a row has no slot.
        rows: int32 of shape (N,): row numbers within the unit.
        truth: float32 of shape (N, K) with the true probabilities of synthetic logs, or None.
        held: uint8 of shape (N,): 1 where the row is held out and has no labels; None where no row can be.
        users: int64 of shape (N,): hash of the row's user, equal for rows without one; None where nobody asks for it.
        groups: int64 of shape (N,): hash of the row's group, 0 for rows without one; None where nobody asks for it.
        slices: int64 of shape (N, S): hash of the row's value in each declared slice; None where nobody asks for it.
        slice_texts: uint8: the packed texts of these values (`features.measured_columns`); None without slices.
    """

    ids: list[np.ndarray]
    offsets: list[np.ndarray]
    dense: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None
    slots: np.ndarray
    rows: np.ndarray
    truth: np.ndarray | None
    held: np.ndarray | None = None
    users: np.ndarray | None = None
    groups: np.ndarray | None = None
    slices: np.ndarray | None = None
    slice_texts: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, order: np.ndarray) -> "EncodedRows":
        """Return the rows at the given indices, in that order; shape (M,)."""
        bags = [_take_bags(*bag, order) for bag in zip(self.ids, self.offsets, strict=True)]
        rest: dict[str, Any] = {
            name: None if getattr(self, name) is None else getattr(self, name).take(order, axis=0)
            for name in ("dense", "labels", "weights", "slots", "rows", "truth", "held", "users", "groups", "slices")
        }
        bagged = {"ids": [ids for ids, _ in bags], "offsets": [offsets for _, offsets in bags]}
        return EncodedRows(**bagged, **rest, slice_texts=self.slice_texts)

    def to_arrow(self) -> pa.Table:
        """Pack all N rows into one Arrow row, so that no later stage can split or reorder them."""
        columns: dict[str, pa.Array] = {}
        for name, value in self.arrays().items():
            flat = pa.array(value.reshape(-1))
            columns[name] = pa.ListArray.from_arrays(pa.array([0, len(flat)], pa.int32()), flat)
        return pa.table(columns)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by name, a list's with their index, and the widths of the matrices."""
        found: dict[str, np.ndarray] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                found |= {f"{field.name}.{index}": array for index, array in enumerate(value)}
            elif value is not None:
                found[field.name] = value
        # Widths of the matrices, which cannot be inferred from zero rows.
        num_slices = 0 if self.slices is None else self.slices.shape[1]
        return found | {"widths": np.array([self.dense.shape[1], self.labels.shape[1], num_slices], np.int32)}

    @classmethod
    def from_arrow(cls, table: pa.Table) -> "EncodedRows":
        """Read the table that `to_arrow` wrote, without copying."""
        assert table.num_rows == 1, f"{table.num_rows} units in one block"
        flat = {name: table[name][0].values.to_numpy(zero_copy_only=True) for name in table.column_names}
        num_rows = len(flat["rows"])
        num_sparse = sum(name.startswith("ids.") for name in flat)
        num_dense, num_tasks, num_slices = flat["widths"]

        def per_task(name: str) -> np.ndarray | None:
            return flat[name].reshape(num_rows, num_tasks) if name in flat else None

        return cls(
            ids=[flat[f"ids.{index}"] for index in range(num_sparse)],
            offsets=[flat[f"offsets.{index}"] for index in range(num_sparse)],
            dense=flat["dense"].reshape(num_rows, num_dense),
            labels=flat["labels"].reshape(num_rows, num_tasks),
            weights=per_task("weights"),
            slots=flat["slots"],
            rows=flat["rows"],
            truth=per_task("truth"),
            held=flat.get("held"),
            users=flat.get("users"),
            groups=flat.get("groups"),
            slices=flat["slices"].reshape(num_rows, num_slices) if num_slices else None,
            slice_texts=flat.get("slice_texts"),
        )


def _take_bags(ids: np.ndarray, offsets: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lengths = offsets[1:] - offsets[:-1]
    if len(lengths) and (lengths == lengths[0]).all():  # ids, and full histories: rows of a matrix
        taken = ids.reshape(len(lengths), lengths[0]).take(order, axis=0).reshape(-1)
        return taken, np.arange(len(order) + 1, dtype=np.int32) * lengths[0]
    taken_lengths, longest = lengths[order], int(lengths.max(initial=0))
    taken_offsets = np.concatenate(([0], np.cumsum(taken_lengths))).astype(np.int32)
    if longest * len(order) > _MAX_PADDING * taken_offsets[-1]:
        return ids[ragged_index(offsets[order], taken_offsets)], taken_offsets
    # Take from the start of every bag as many ids as the longest bag has, as one item; then drop those beyond the bag:
    # half the time of an index of every id.
    padded = np.concatenate((ids, np.zeros(longest, ids.dtype)))
    windows = np.ndarray(len(ids) + 1, f"V{longest * ids.itemsize}", padded, strides=(ids.itemsize,))
    taken = windows[offsets[order]].view(ids.dtype).reshape(len(order), longest)
    return taken[np.arange(longest) < taken_lengths[:, None]], taken_offsets
