"""Commands that a person or a scheduler types; `python -m jobs` lists them."""

import sys


def _refuse_wrong_name() -> None:
    """Refuse `python -m jobs.WRONG`, which Python would end with exit code 1 or, for a helper module, with 0."""
    if sys.argv[:1] != ["-m"]:  # its value while Python looks for the module, and at no other time
        return
    module = sys.orig_argv[len(sys.orig_argv) - len(sys.argv)].removeprefix("-m")
    package, _, name = module.partition(".")
    if package != __name__ or name in ("", "__main__"):
        return
    from jobs.__main__ import names, refuse

    if name not in names():
        sys.exit(refuse(name, sys.argv[1:]))


_refuse_wrong_name()
