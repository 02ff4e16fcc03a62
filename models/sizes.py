"""Bounds on the sizes of a network, so that a misplaced digit is refused before it takes all memory."""

from typing import Annotated

from pydantic import Field

Width = Annotated[int, Field(ge=1, le=65_536)]
Count = Annotated[int, Field(ge=1, le=1024)]
CountOrNone = Annotated[int, Field(ge=0, le=1024)]
