"""Loading tables from a checkpoint in which they had fewer rows: the first rows are loaded, the others stay."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import STATE_DICT_TYPE, STORAGE_TYPES, Metadata, TensorStorageMetadata

from features.errors import DataError
from models.tables import table_of


class GrowthLoadPlanner(DefaultLoadPlanner):
    """DCP's planner, which lets some tables, and their optimizer state, have more rows than they were saved with.

    DCP reads what the saved pieces of a tensor and this rank's have in common, whatever the tensor's size; it only
    refuses, before that, a size that differs. So the saved size is stated as the present one, and pieces that nothing
    was saved of are not read: rows that have come since keep their start values.

    Args:
        num_rows: Rows that the tables have now, by name; of those that may have grown.
    """

    def __init__(self, num_rows: Mapping[str, int]) -> None:
        super().__init__()
        self._num_rows = num_rows

    def set_up_planner(
        self, state_dict: STATE_DICT_TYPE, metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Take what is to be loaded, and what was saved.

        Raises:
            DataError: A table has fewer rows than were saved.
        """
        assert metadata is not None
        saved = {name: self._as_now(name, entry) for name, entry in metadata.state_dict_metadata.items()}
        super().set_up_planner(state_dict, replace(metadata, state_dict_metadata=saved), is_coordinator)

    def _as_now(self, name: str, saved: STORAGE_TYPES) -> STORAGE_TYPES:
        """What was saved of a tensor, with the number of rows that it has now where its table may have grown."""
        table = table_of(name)
        now = self._num_rows.get(table or "")
        if now is None or not isinstance(saved, TensorStorageMetadata):
            return saved
        rows, *rest = saved.size
        if now < rows:
            raise DataError(
                f"table {table!r} was saved with {rows:,} rows, the config declares {now:,}: it can grow, not "
                "shrink; restore num_rows or start a new root"
            )
        return replace(saved, size=torch.Size([now, *rest]))
