"""The names of timm's backbones, kept in the cache: importing timm takes seconds, reading a list does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata

from fitwithin.files import cache_root, write_text_atomic


def known_models(wait: Callable[[], object] | None = None) -> list[str]:
    """All model names of the installed timm, sorted.

    ``wait`` returns when another process, which imports timm anyway, has called this: nothing is imported twice.
    """
    path = cache_root() / f"timm-{metadata.version('timm')}.json"
    with suppress(OSError, ValueError):
        return [str(name) for name in json.loads(path.read_text(encoding="utf-8"))]
    if wait is not None:
        wait()
        return known_models()
    import timm

    names = list(timm.list_models())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, json.dumps(names), shared=True)
    return names
