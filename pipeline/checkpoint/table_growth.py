"""Loading of tables that had fewer rows in the checkpoint: the first rows are loaded, the others stay."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import STATE_DICT_TYPE, STORAGE_TYPES, Metadata, TensorStorageMetadata

from features.errors import DataError
from models.tables import table_of


class GrowthLoadPlanner(DefaultLoadPlanner):
    """DCP's planner, extended to tables, and their optimizer state, with more rows than saved.

    DCP reads the overlap of a tensor's saved pieces with this rank's pieces, for any size of the tensor; it only
    refuses, before that, a size that differs. So the saved size is replaced by the present one. Pieces without a saved
    part are not read.

    Args:
        num_rows: Present number of rows by table, for tables that may have grown.

    Attributes:
        saved_rows: Number of saved rows by table, of tables that have grown.
    """

    def __init__(self, num_rows: Mapping[str, int]) -> None:
        super().__init__()
        self._num_rows = num_rows
        self.saved_rows: dict[str, int] = {}

    def set_up_planner(
        self, state_dict: STATE_DICT_TYPE, metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Receive the tensors to load, and the metadata of the saved ones.

        Raises:
            DataError: A table has fewer rows than were saved.
        """
        assert metadata is not None
        saved = {name: self._as_now(name, entry) for name, entry in metadata.state_dict_metadata.items()}
        super().set_up_planner(state_dict, replace(metadata, state_dict_metadata=saved), is_coordinator)

    def _as_now(self, name: str, saved: STORAGE_TYPES) -> STORAGE_TYPES:
        """Return a tensor's saved metadata, with its present number of rows if its table may have grown."""
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
        if now > rows:
            self.saved_rows[str(table)] = rows
        return replace(saved, size=torch.Size([now, *rest]))
