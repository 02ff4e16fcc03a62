"""Embedding tables as a config declares them: rows, width, initialisation, and the mapping of ids to rows."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from features.declaration import Declaration, Name


class TableInit(Declaration):
    """Initialisation of the rows of a table.

    Args:
        kind: `uniform` on (-scale, scale), or `normal` with that standard deviation.
        scale: Absent: 1 / sqrt(dim) for uniform, as in DLRM; required for normal.
    """

    kind: Literal["uniform", "normal"] = "uniform"
    scale: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _normal_needs_scale(self) -> Self:
        if self.kind == "normal" and self.scale is None:
            raise ValueError("a normal init needs its scale, the standard deviation")
        return self


class HashingConfig(Declaration):
    """Hashing of ids to rows; two ids may share a row.

    Args:
        kind: `hashing`.
    """

    kind: Literal["hashing"]


class VocabularyConfig(Declaration):
    """Vocabulary: frequent ids have a row of their own; the others are hashed into a few rows, the tail.

    Args:
        kind: `vocabulary`.
        min_count: Number of occurrences in the table's features from which a new id gets a row, counted per update:
            over one day, or over all days of the command.
        keep_days: Number of days: in a full table, an id not seen in the last `keep_days` days may lose its row to a
            new one.
        tail_rows: The table's first rows, over which all other ids are hashed; fewer than `num_rows`.
    """

    kind: Literal["vocabulary"]
    min_count: int = Field(ge=1)
    keep_days: int = Field(ge=1)
    tail_rows: int = Field(ge=1)


IdMappingConfig = Annotated[HashingConfig | VocabularyConfig, Field(discriminator="kind")]


class TableConfig(Declaration):
    """An embedding table, which several features may share.

    Args:
        name: The table's name.
        num_rows: Number of rows. With a vocabulary it may be raised later, from the table's checkpoint.
        dim: Width of a row.
        init: Initialisation of the rows.
        id_mapping: Mapping of ids to rows.
    """

    name: Name
    num_rows: int = Field(ge=1, le=2**31 - 1)
    dim: int = Field(ge=1, le=4096)
    init: TableInit = TableInit()
    id_mapping: IdMappingConfig = HashingConfig(kind="hashing")

    @model_validator(mode="after")
    def _leave_rows_beside_the_tail(self) -> Self:
        mapping = self.id_mapping
        if isinstance(mapping, VocabularyConfig) and mapping.tail_rows >= self.num_rows:
            raise ValueError(
                f"table {self.name!r} has {self.num_rows} rows, {mapping.tail_rows} of them its tail: declare fewer "
                "tail_rows, ids are given the rest"
            )
        return self
