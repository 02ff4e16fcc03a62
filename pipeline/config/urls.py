"""Location of a root or a log: a local directory or an s3:// prefix."""

import re

from features.errors import ConfigError


def check_url(url: str) -> None:
    """Check that a url is a local directory or `s3://bucket/prefix`; no error repeats a possible secret.

    Args:
        url: Url of a root, or of logs.

    Raises:
        ConfigError: The url has another scheme, no bucket, or credentials, options or patterns.
    """
    scheme = re.match(r"([A-Za-z][\w+.-]*):[:/]|(s3a?):", url)
    if scheme is None:
        return
    if not url.startswith("s3://"):
        name = scheme[1] or scheme[2]
        raise ConfigError(f"a url that begins with {name!r}: expected a local directory or s3://bucket/prefix")
    bucket = url.removeprefix("s3://").partition("/")[0]
    if "@" in bucket or ":" in bucket:
        raise ConfigError(
            "an s3:// url with credentials in it: expected s3://bucket/prefix; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY in the environment, or give the machine a role"
        )
    if any(sign in url for sign in "?*["):
        raise ConfigError(
            "an s3:// url with options or patterns (one of ? * [): expected s3://bucket/prefix; the endpoint comes "
            "from AWS_ENDPOINT_URL in the environment"
        )
    if not re.fullmatch(r"[A-Za-z0-9._-]{3,}", bucket):
        raise ConfigError(f"an s3:// url whose bucket is {bucket!r}: expected s3://bucket/prefix")
