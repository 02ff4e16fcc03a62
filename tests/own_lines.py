"""The form of a command's own lines on stderr; imports nothing heavy, since a script reads it."""

import re

OWN_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [IWE] .*")
