"""Everything that a turn needs to go on in another process, in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fitwithin.files import put
from fitwithin.training.learner import Learner


def write_checkpoint(path: Path, learner: Learner, facts: dict[str, Any]) -> None:
    """Write everything needed to go on; an older checkpoint stays whole until replaced.

    Processes that train together call it together; the first one writes.
    """
    state = learner.state()
    if learner.team.leads:
        put(path, lambda new: torch.save({"learner": state, "facts": facts}, new), lasting=True)


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """The checkpoint at ``path``, None if there is none. Tensors and plain values only: nothing in it can run."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None
