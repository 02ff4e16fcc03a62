"""Exceptions that end a command in an orderly way: a wrong declaration, data that do not fit it, a request to end."""

import errno

# Numbers of an OSError whose place is no other one when the command is tried again.
NO_PLACE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG})


class ConfigError(ValueError):
    """A declaration that cannot be carried out; the command ends with exit code 2."""


class DataError(ValueError):
    """Logs that contradict the declaration; the command ends with exit code 3."""


class Interrupted(Exception):  # noqa: N818 - not an error
    """Request to end: the command saved its state and ends with exit code 1; a restart continues from there."""
