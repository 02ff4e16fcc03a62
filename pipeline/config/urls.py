"""Location of a root or a log: a local directory or an s3:// prefix; the one place that resolves it."""

import os
import re
from urllib.parse import quote

from features.errors import ConfigError

S3 = "s3://"


def resolve_url(url: str) -> str:
    """Return the place that a person means by a url; no error repeats a possible secret.

    Args:
        url: A local directory, with `~` for the home of a user, or `s3://bucket/prefix`, every character of which is
            one of the prefix: `%20` is no space.

    Returns:
        An absolute path, or the `s3://` url, without a slash at the end.

    Raises:
        ConfigError: The url is empty, or has another scheme, no bucket, credentials, options, patterns or variables.
    """
    if not url.strip():
        raise ConfigError(f"{url!r} is no place: expected a local directory or s3://bucket/prefix")
    _check_scheme(url)
    shown = "an s3:// url" if url.startswith(S3) else repr(url)
    if "$" in url:
        raise ConfigError(f"{shown} has a $, and no variable is replaced here: write the path itself")
    if not url.isprintable():
        raise ConfigError(f"{shown} has a character that cannot be shown, such as a line break: leave it out")
    if url.startswith(S3):
        return url.rstrip("/")
    path = os.path.expanduser(url)
    if path.startswith("~") and url.startswith("~"):
        raise ConfigError(f"{url!r}: this machine has no user {url[1:].partition('/')[0]!r}: write the path itself")
    return os.path.abspath(path)


def local_directory(url: str, option: str) -> str:
    """Return the absolute path of a local directory.

    Args:
        url: Value of an argument.
        option: The argument, for the error.

    Raises:
        ConfigError: The value is no local directory.
    """
    try:
        path = resolve_url(url)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from error
    if path.startswith(S3):
        raise ConfigError(f"{option} is an s3:// url: give a local directory, and copy it to the bucket afterwards")
    return path


def uri_of(place: str) -> str:
    """Return the name of a resolved place for libraries that parse URIs, in which `%`, `#` and spaces are escaped.

    Args:
        place: Path or url from `resolve_url`. Local paths are no URIs, and stay as they are.
    """
    return S3 + quote(place.removeprefix(S3)) if place.startswith(S3) else place


def _check_scheme(url: str) -> None:
    scheme = re.match(r"([A-Za-z][\w+.-]*):[:/]|(s3a?):", url)
    if scheme is None:
        return
    if not url.startswith(S3):
        name = scheme[1] or scheme[2]
        raise ConfigError(f"a url that begins with {name!r}: expected a local directory or s3://bucket/prefix")
    bucket = url.removeprefix(S3).partition("/")[0]
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
    if "::" in url:
        raise ConfigError("an s3:// url has '::', which file systems take for a chain: leave it out")
