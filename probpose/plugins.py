"""Code of the user's own, named on a command line or in a recipe as "module:attribute"."""

from __future__ import annotations

import importlib
import os
import re
import sys
from typing import Any


def is_own(name: str) -> bool:
    """Whether a name is written as that of something in a module, "my_module:thing"."""
    return re.fullmatch(r"\w+(\.\w+)*:\w+", name) is not None


def load_own(name: str, what: str) -> Any:
    """What a module holds under a name. The module may lie in the current folder.

    Args:
        name: "module:attribute".
        what: what error messages call it.

    Raises:
        ValueError: another kind of name, no such module, or nothing of that name in it.
        Exception: what the module itself raises.
    """
    if not is_own(name):
        raise ValueError(f"{what} must be named as 'module:attribute', got {name!r}")
    module, attribute = name.split(":")
    folder = os.getcwd()  # which `python -m` has on its path, and an installed command has not
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        home = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"{what} {name!r}: there is no module {error.name!r}, neither in {folder} nor installed") from None
    if not hasattr(home, attribute):
        raise ValueError(f"{what} {name!r}: the module {module!r} in {getattr(home, '__file__', None)} has no {attribute!r}")
    return getattr(home, attribute)
