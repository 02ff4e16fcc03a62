"""What a user can get wrong, apart from what we got wrong: a declaration, or the data it is held against."""


class ConfigError(ValueError):
    """A declaration that cannot be carried out; the command ends with exit code 2."""


class DataError(ValueError):
    """Logs that are not what the declaration says; the command ends with exit code 3."""
