"""Pretrained weights put into a net: all of them, each in its place, or none with a sentence why."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import timm
import torch
from torch import nn

from fitwithin.errors import WeightsError
from fitwithin.weights.find import Weights

State = dict[str, torch.Tensor]

#: Counters of batch normalisation, without a say in what a net computes; older files lack them.
_COUNTER = "num_batches_tracked"

#: What a net computes when it is built; newer files leave it out, older nets keep it.
_COMPUTED = (_COUNTER, "relative_position_index", "attn_mask")

#: What files hold for the training of their time alone.
_OF_TRAINING = (*_COMPUTED, "mask_token")

#: Last words of names that say what a tensor is. Where both sides use these, they must agree.
_KINDS = {"weight", "bias", "running_mean", "running_var"}


def load(weights: Weights, net: nn.Module, *, head: bool = False) -> None:
    """Put ``weights`` into ``net``, which ``timm.create_model(weights.model, num_classes=K, ...)`` made.

    The classifier keeps its drawn values, unless ``head`` is set: then the file's is taken, too. By name where the file
    has timm's names, today's or older ones; else by position, and only if the shape of every tensor agrees.

    Raises:
        WeightsError: the file is damaged, holds code, or belongs to another model; ``net`` is as it was.
    """
    path = Path(weights.path)
    state, theirs, prefixes = read(path), net.state_dict(), _classifier(net)
    placed, reason = _by_name(state, theirs, prefixes)
    if placed is None:
        placed, _ = _by_name(_modernised(state, net), theirs, prefixes)
    if placed is None:
        placed, other = _by_position(state, theirs, prefixes)
        reason = reason if len(state.keys() & theirs.keys()) > len(theirs) / 2 else other
    if placed is None:
        raise WeightsError(f"{path} holds weights of another model than {weights.model}: {reason}; take its own file")
    own = [name for name in theirs if name.startswith(prefixes)]
    if head and (lacking := next((name for name in own if name not in placed), None)):
        raise WeightsError(f"the classifier in {path} does not fit: {lacking} is absent or of another size; go without")
    kept = {name: value for name, value in placed.items() if head or name not in own}
    net.load_state_dict(kept, strict=False)  # what is not in it was allowed to be absent


def read(path: Path) -> State:
    """The tensors in a file of weights, on the CPU, by their names there.

    Only tensors are read, from safetensors or by ``torch.load(weights_only=True)``: no code in a file is ever run.

    Raises:
        WeightsError: the file is absent, was cut short, or holds something else, or code.
    """
    try:
        found = timm.models.load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to say
        raise WeightsError(_damage(path, error)) from error
    state = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    if not state:
        raise WeightsError(f"{path} holds no tensors by name; take the file that the weights were published as")
    broken = next((name for name, value in state.items() if not bool(torch.isfinite(value).all())), None)
    if broken is not None:
        raise WeightsError(f"{path} holds numbers that are not finite, in {broken}; take another copy of it")
    return state


def _damage(path: Path, error: Exception) -> str:
    """A sentence on a file that cannot be read."""
    if not path.is_file():
        return f"there is no file {path}; `fitwithin weights list` shows the weights on this machine"
    with path.open("rb") as file:
        beginning = file.read(64).lstrip()
    if beginning.startswith(b"<"):
        return f"{path} is a web page, not weights; download the file itself"
    if beginning.startswith(b"version https://git-lfs"):
        return f"{path} is a pointer to weights, not weights; `git lfs pull` in its folder fetches them"
    if names := _code(path):
        return f"{path} holds code ({names}), which is not run; ask its author for the weights alone, as safetensors"
    told = " ".join(str(error).split())[:120] or type(error).__name__
    return f"{path} cannot be read as weights, it was cut short or is something else ({told}); download it again"


def _code(path: Path) -> str:
    """The first few names of what a pickle would call; nothing if it cannot be read so far."""
    try:
        return ", ".join(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))[:3])
    except Exception:  # as above
        return ""


def _classifier(net: nn.Module) -> tuple[str, ...]:
    """How the names of the classifier's tensors begin: ``("head.fc.",)``, or ``("head.", "head_dist.")``."""
    said = getattr(net, "pretrained_cfg", {}).get("classifier") or ()
    return tuple(f"{name}." for name in ((said,) if isinstance(said, str) else said))


def _by_name(state: State, theirs: State, prefixes: tuple[str, ...]) -> tuple[State | None, str]:
    """The tensors for a net whose own are ``theirs``, each under the net's name for it; else None, and why."""
    absent, unused = _open(prefixes, state), _open(prefixes, theirs)
    lacks = [name for name in theirs.keys() - state.keys() if not name.startswith(absent)]
    spare = [name for name in state.keys() - theirs.keys() if not name.startswith(unused)]
    fits = {name for name in theirs.keys() & state.keys() if theirs[name].shape == state[name].shape}
    sized = [name for name in theirs.keys() & state.keys() - fits if not name.startswith(prefixes)]
    wrong = [
        *(f"{name} is absent" for name in lacks if not name.endswith(_COMPUTED)),
        *(f"{name} is {_shape(state[name])}, not {_shape(theirs[name])}" for name in sized),
        *(f"the model has no {name}" for name in spare if not name.endswith(_OF_TRAINING)),
    ]
    if wrong:
        return None, f"{min(wrong)} ({len(wrong)} such differences)"
    return {name: state[name] for name in theirs if name in fits}, ""


def _open(prefixes: tuple[str, ...], names: Iterable[str]) -> tuple[str, ...]:
    """The beginnings of names that one side may lack: the classifier's, and those of what is around it where ``names``
    have none of that, as LeViT's normalisation before its classifier."""
    parts = [prefix.split(".")[:-1] for prefix in prefixes]
    around = {".".join(each[:count]) + "." for each in parts for count in range(1, len(each))}
    return (*prefixes, *(each for each in around if not any(name.startswith(each) for name in names)))


def _by_position(state: State, theirs: State, prefixes: tuple[str, ...]) -> tuple[State | None, str]:
    """The same for a file with other names: its tensors in their order are the net's, shape by shape."""
    file = [(name, value) for name, value in state.items() if not name.endswith(_COUNTER)]
    mine = [(name, value) for name, value in theirs.items() if not name.endswith(_COUNTER)]
    body = [(name, value) for name, value in mine if not name.startswith(prefixes)]
    if [name for name, _ in file] == sorted(name for name, _ in file):
        return None, f"it has other names, as {file[0][0]}, in the order of the alphabet"  # block 10 before block 2
    if len(file) == len(body):  # a file without a classifier
        mine = body
    elif len(mine) == len(body) and _ends_with_classifier(file, len(body)):
        file = file[: len(body)]
    if len(file) != len(mine):
        return None, f"it has {len(file)} tensors, the model {len(mine)}"
    placed = {}
    for (their_name, value), (name, own) in zip(file, mine, strict=True):
        is_head = name.startswith(prefixes) and value.ndim == own.ndim
        if value.shape != own.shape and not (is_head and value.shape[1:] == own.shape[1:]):
            return None, f"its {their_name} is {_shape(value)}, where the model's {name} is {_shape(own)}"
        kinds = {their_name.rpartition(".")[2], name.rpartition(".")[2]}
        if (len(kinds) == 2 and kinds <= _KINDS) or (their_name in theirs and their_name != name):
            return None, f"its {their_name} is where the model has {name}"
        if value.shape == own.shape:
            placed[name] = value
    return placed, ""


def _ends_with_classifier(file: list[tuple[str, torch.Tensor]], body: int) -> bool:
    """Whether what follows the first ``body`` tensors is one linear layer."""
    rest = [value for _, value in file[body:]]
    return len(rest) in (1, 2) and rest[0].ndim == 2 and all(bias.shape == rest[0].shape[:1] for bias in rest[1:])


def _shape(value: torch.Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "a number"


def _modernised(state: State, net: nn.Module) -> State:
    """The tensors under timm's names of today, by timm's own translation for this kind of model.

    It also resizes position embeddings. Where it can make nothing of the file, the tensors stay as they are.
    """
    for kind in type(net).__mro__:
        module = sys.modules[kind.__module__]
        translate = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
        if kind.__module__.startswith("timm.") and translate is not None:
            try:
                return dict(translate(dict(state), net))
            except Exception:  # it expects one of a few files, and fails in as many ways on any other
                return state
    return state
