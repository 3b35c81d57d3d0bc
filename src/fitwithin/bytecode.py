"""Where the bytecode of what is imported is kept if Python keeps none.

Containers often have none: uv compiles nothing when it installs, PYTHONDONTWRITEBYTECODE is set or the packages belong
to somebody else, and every start would compile everything anew: 12 s for torch and timm, 0.4 before the command line
tells its version (two cores). Then it is kept in the cache. This module is the first that is imported.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from fitwithin.files import cache_root


def home() -> Path | None:
    """Where it is kept; None if there is some beside torch, or Python may write it there."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        return None  # the worker server will say so
    compiled = Path(importlib.util.cache_from_source(torch.origin))
    there = next(path for path in (compiled, *compiled.parents) if path.exists())
    if there == compiled or (os.access(there, os.W_OK) and not sys.dont_write_bytecode):
        return None
    return cache_root().absolute() / "bytecode"


def environment() -> dict[str, str]:
    """This process's environment, for one that shall keep bytecode at :func:`home`."""
    value = dict(os.environ)
    if (folder := home()) is not None:
        value.pop("PYTHONDONTWRITEBYTECODE", None)
        value["PYTHONPYCACHEPREFIX"] = str(folder)
    return value


def keep() -> None:
    """Keep what this process imports from now on at :func:`home`, and so do the processes that it starts."""
    if (folder := home()) is not None:
        sys.pycache_prefix, sys.dont_write_bytecode = str(folder), False
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
