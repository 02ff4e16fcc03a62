"""Sealed hold-out: users whose rows are never trained, so that two checkpoints compare on rows new to both."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from features.declaration import Declaration
from features.errors import DataError
from features.hashing import hash_ids, salt_of

Rows = Literal["trained", "held_out", "all"]


class HoldoutConfig(Declaration):
    """Rows that are never trained.

    Another column, share or salt holds out other rows, which the model has trained: set it once, when a line begins.

    Args:
        column: The log's column (integer, string or binary) whose values are held out whole, normally the user. A row
            with null here is trained.
        share: Share of the column's values that is held out, by their hash.
        salt: Another salt holds out others.
    """

    column: str
    share: float = Field(default=0.01, gt=0, le=0.5)
    salt: str = "holdout"

    def held_out(self, columns: Mapping[str, pa.Array]) -> np.ndarray:
        """Return the mask of held-out rows.

        Args:
            columns: Arrays of N rows by column name.

        Returns:
            bool of shape (N,).

        Raises:
            DataError: The column's type is not an id type.
        """
        values = columns[self.column]
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        try:
            present = values.is_valid().to_numpy(zero_copy_only=False)
            hashes = hash_ids(pc.drop_null(values), salt_of(self.salt))
        except TypeError as error:
            raise DataError(f"column {self.column!r} (holdout.column): {error}") from error
        held = np.zeros(len(values), bool)
        held[present] = hashes < np.uint64(int(self.share * 2**64))
        return held
