"""Bounds of what a network may be made of: beyond them a misplaced digit would take all memory before it is refused."""

from typing import Annotated

from pydantic import Field

Width = Annotated[int, Field(ge=1, le=65_536)]
Count = Annotated[int, Field(ge=1, le=1024)]
CountOrNone = Annotated[int, Field(ge=0, le=1024)]
