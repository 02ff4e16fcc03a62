"""Typed records: frozen pydantic models that are written as JSON with a version and a checksum of their own."""

from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

from pipeline.storage.sealed_json import seal, unseal


class LaterVersion(ValueError):  # noqa: N818 - the name says what was found
    """A record that a later version of Counterpoise wrote; it is not damaged."""


class RecordPart(BaseModel):
    """Base of the parts of a record; a key that is not declared is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Record(RecordPart):
    """Base of the records of a root; a record of an earlier version is read, one of a later version is refused.

    A field whose value is None is not written.
    """

    VERSION: ClassVar[int] = 2
    """Version that is written; 1 is what was written before records had a version."""
    VERSION_KEY: ClassVar[str] = "version"

    def to_bytes(self) -> bytes:
        """Return the record as JSON with its version and its checksum."""
        return seal({self.VERSION_KEY: self.VERSION} | self.model_dump(mode="json", by_alias=True, exclude_none=True))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a record that `to_bytes` wrote, of this version or of an earlier one.

        Raises:
            LaterVersion: A later version wrote it.
            ValueError: The data are no JSON with a checksum, or are not what was written.
        """
        content = unseal(data)
        version = content.pop(cls.VERSION_KEY, 1)
        if version > cls.VERSION:
            raise LaterVersion(
                f"it has {cls.VERSION_KEY} {version}, this version of Counterpoise reads up to {cls.VERSION}: use the "
                "version that wrote it, or a later one"
            )
        return cls.model_validate(content if version == cls.VERSION else cls.upgraded(content, version))

    @classmethod
    def upgraded(cls, content: dict[str, Any], version: int) -> dict[str, Any]:
        """Return the content of an earlier version's record in the form of the present version."""
        return content
