"""What ends a command in an orderly way: a wrong declaration, data that do not fit it, a request to end."""


class ConfigError(ValueError):
    """A declaration that cannot be carried out; the command ends with exit code 2."""


class DataError(ValueError):
    """Logs that are not what the declaration says; the command ends with exit code 3."""


class Interrupted(Exception):  # noqa: N818 - it is no error
    """The command was asked to end, saved where it was, and ends with exit code 1: started again it goes on."""
