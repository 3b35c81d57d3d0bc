"""The names of timm's backbones, kept in the cache: importing timm takes seconds, reading a list does not."""

from __future__ import annotations

import json
from importlib import metadata

from fitwithin.pack import cache_root


def known_models() -> list[str]:
    """All model names of the installed timm, sorted."""
    path = cache_root() / f"timm-{metadata.version('timm')}.json"
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        from fitwithin.model import known_models as ask_timm

        names = ask_timm()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(names), encoding="utf-8")
        temporary.replace(path)
    return [str(name) for name in names]
