"""Arguments of a job as a shell may read them, and the environment variables of a job.

KubeRay pastes an entrypoint unquoted into a shell script, and Ray runs it by another shell. So a word with any other
character than these goes into an environment variable, and the entrypoint has the variable's name. The same script has
the variables between double quotes, where a shell acts on `$` and backticks. So the value of the variable is the word's
UTF-8 bytes in hexadecimal digits.
"""

import os
import re
from collections.abc import Mapping, Sequence

RECORD_VARIABLE = "COUNTERPOISE_JOB_RECORD"
CODE_VARIABLE = "COUNTERPOISE_JOB_CODE"
CONFIG_VARIABLE = "COUNTERPOISE_JOB_CONFIG"
DIGEST_VARIABLE = "COUNTERPOISE_JOB_DIGEST"
_PLAIN = re.compile(r"[A-Za-z0-9_./:=-]+")
_PREFIX = "COUNTERPOISE_WORD_"
_STANDS_FOR = re.compile(rf"env:{_PREFIX}[0-9]+")


def encode(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return words that no shell changes, and the environment variables that they name."""
    plain, variables = [], {}
    for place, word in enumerate(words):
        if _PLAIN.fullmatch(word) and not _STANDS_FOR.fullmatch(word):
            plain.append(word)
        else:
            name = f"{_PREFIX}{place}"
            variables[name] = word.encode().hex()
            plain.append(f"env:{name}")
    return plain, variables


def decode(words: Sequence[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the words that `encode` was given; a variable that is not set stays as its name."""
    return [_word(word, environment) if _STANDS_FOR.fullmatch(word) else word for word in words]


def _word(reference: str, environment: Mapping[str, str]) -> str:
    value = environment.get(reference.removeprefix("env:"))
    return reference if value is None else bytes.fromhex(value).decode()


def is_plain(entrypoint: str) -> bool:
    """Return True if an entrypoint has only words that no shell changes."""
    return bool(entrypoint.split()) and all(_PLAIN.fullmatch(word) for word in entrypoint.split(" "))
