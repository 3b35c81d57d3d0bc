"""Pretrained weights pulled from the Hugging Face Hub, by its own client: the only place that uses the network.

The client's ``hf_hub_download`` starts a broken download anew and checks no hash (read in huggingface_hub 2.4), so its
parts are put together here: what the Hub says of a repository, and a request for the rest of a file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fitwithin.errors import DiskFull, UsageError, WeightsError
from fitwithin.files import disk_is_full, write_text_atomic
from fitwithin.units import format_size
from fitwithin.weights.configs import config_of, near
from fitwithin.weights.hashes import sha256_of
from fitwithin.weights.licences import refusal

#: A choice for small and large images, fast and strong, all under Apache-2.0 by timm 1.0.31: what `pull` takes by
#: default. Their pretraining differs on purpose, since what matters is which one suits the images.
PORTFOLIO = (
    "lcnet_100.ra2_in1k",
    "levit_192.fb_dist_in1k",
    "levit_256.fb_dist_in1k",
    "resnet50.a1_in1k",
    "hgnetv2_b4.ssld_stage2_ft_in1k",
    "vit_base_patch32_clip_224.laion2b_ft_in12k_in1k",
    "deit3_small_patch16_224.fb_in22k_ft_in1k",
    "convnext_tiny.in12k_ft_in1k",
    "tiny_vit_21m_224.dist_in22k",
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "vit_base_patch16_clip_224.laion2b_ft_in12k_in1k",
    "convnext_base.fb_in22k",
)

#: What the client, in its versions, speaks HTTP with.
_NETWORK = ("httpx2", "httpcore2", "httpx", "httpcore", "requests", "urllib3")

#: The files of a repository that may be pulled, the preferred one first.
FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What the Hub has under a name: the file, its size in bytes, its sha256, its licence."""

    name: str
    repo: str
    revision: str
    file: str
    size_bytes: int
    sha256: str
    licence: str

    @property
    def target(self) -> str:
        """The file's name in the folder it is pulled to."""
        return self.name + Path(self.file).suffix


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """Weights that were pulled, as NAME.json beside them says: where they came from, and on what terms."""

    name: str
    path: str
    licence: str
    source: str
    repo: str
    revision: str
    file: str
    size_bytes: int
    sha256: str


Progress = Callable[[Offer, int], object]


def pull(names: Sequence[str], folder: Path, *, licences: Sequence[str], on_progress: Progress) -> list[Pulled]:
    """Pull weights into ``folder``: ``<name>.safetensors``, and beside it ``<name>.json`` with licence and source.

    Args:
        names: timm's, ``resnet50.a1_in1k``, or ``resnet50`` for a model's default weights.
        licences: those permitted; everything is looked up before anything is downloaded.
        on_progress: called with what is pulled and the bytes that are there, the first time before any is asked for.

    Raises:
        UsageError: timm has no such name.
        WeightsError: a licence is not permitted, the Hub has no such file or cannot be reached, or the connection
            broke: what came until then is kept, and the next call goes on from there.
        DiskFull: there is no room for it.
    """
    return [download(offer, folder, on_progress) for offer in look_up(names, licences=licences)]


def look_up(names: Sequence[str], *, licences: Sequence[str]) -> list[Offer]:
    """What the Hub has under these names. Raises as :func:`pull` does; nothing is downloaded."""
    asked = []
    for name in names:
        config = config_of(name)
        if config is None:
            raise UsageError(f"timm has no weights called {name}{near(name)}")
        if not config.repo:
            raise WeightsError(
                f"timm names no place on the Hub for {config.name}; put its file into a --weights folder"
            )
        if reason := refusal(config.name, config.licence, licences):
            raise WeightsError(f"{reason}; nothing was pulled")
        asked.append(config)
    return [_offer(config.name, config.repo, config.licence, licences) for config in dict.fromkeys(asked)]


def _offer(name: str, repo: str, licence: str, licences: Sequence[str]) -> Offer:
    with _in_a_sentence(name, repo):
        from huggingface_hub import HfApi

        info = HfApi().model_info(repo, files_metadata=True, timeout=20)
    card = info.card_data
    stated = getattr(card, "license", None) if card is not None else None
    if stated == "other":  # a licence of its own has a name beside that
        stated = getattr(card, "license_name", None) or stated
    if isinstance(stated, str):  # who publishes it has the last word
        licence = stated.lower()
    if reason := refusal(name, licence, licences):
        raise WeightsError(f"{reason}; that is what {repo} says; nothing was pulled")
    files = {each.rfilename: each for each in info.siblings or ()}
    chosen = next((files[file] for file in FILES if file in files), None)
    if chosen is None or chosen.lfs is None or info.sha is None:
        raise WeightsError(f"{repo} holds no {' or '.join(FILES)} with a hash; put a file into a --weights folder")
    return Offer(
        name=name,
        repo=repo,
        revision=info.sha,
        file=chosen.rfilename,
        size_bytes=chosen.lfs.size,
        sha256=chosen.lfs.sha256,
        licence=licence,
    )


def download(offer: Offer, folder: Path, on_progress: Progress) -> Pulled:
    """The file of an offer, whole and with the right hash, and its NAME.json; raises as :func:`pull` does."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / offer.target
    if path.is_file() and sha256_of(path) == offer.sha256:
        on_progress(offer, offer.size_bytes)
    else:
        _fetch(offer, path, on_progress)
    pulled = Pulled(
        name=offer.name,
        path=str(path.absolute()),
        licence=offer.licence,
        source=f"Hugging Face Hub, {offer.repo}",
        repo=offer.repo,
        revision=offer.revision,
        file=offer.file,
        size_bytes=offer.size_bytes,
        sha256=offer.sha256,
    )
    said = {key: value for key, value in vars(pulled).items() if key != "path"}
    write_text_atomic(folder / f"{offer.name}.json", json.dumps(said, indent=1) + "\n")
    return pulled


def _fetch(offer: Offer, path: Path, on_progress: Progress) -> None:
    """Download into a file that keeps what came if the connection breaks; check it, and give it its name."""
    part = path.with_name(f"{offer.name}.{offer.sha256[:12]}.part")
    with part.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WeightsError(f"another process is pulling {offer.name} to {path.parent}; wait for it") from error
        if file.tell() > offer.size_bytes:
            file.truncate(0)
        have = file.tell()
        free = shutil.disk_usage(path.parent).free
        if free < offer.size_bytes - have:
            raise DiskFull(
                f"{offer.name} needs {format_size(offer.size_bytes - have)}, the disk with {path.parent} has "
                f"{format_size(free)} left; free some space or give another folder with --to"
            )
        on_progress(offer, have)
        with _quiet(), _in_a_sentence(offer.name, offer.repo):
            _get(offer, file, have, lambda done: on_progress(offer, done))
        file.flush()
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 != offer.sha256:
            part.unlink()
            raise WeightsError(
                f"what came for {offer.name} is not what the Hub announces (sha256 {sha256[:8]}, not "
                f"{offer.sha256[:8]}), it was removed; pull it again"
            )
        part.replace(path)


def _get(offer: Offer, file: IO[bytes], have: int, on_bytes: Callable[[int], object]) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    http_get(
        hf_hub_url(offer.repo, offer.file, revision=offer.revision),
        _Counted(file, on_bytes),  # type: ignore[arg-type]
        resume_size=have,
        headers=build_hf_headers(),
        expected_size=offer.size_bytes,
    )


class _Counted:
    """A file that says after each piece how much it holds; the client starts anew where a server cannot go on."""

    def __init__(self, file: IO[bytes], on_bytes: Callable[[int], object]) -> None:
        self._file, self._on_bytes = file, on_bytes

    def write(self, piece: bytes) -> int:
        """Write, and say so."""
        written = self._file.write(piece)
        self._on_bytes(self._file.tell())
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the client's own bars and remarks: there is one who shows progress."""
    from huggingface_hub.utils.logging import get_verbosity, set_verbosity
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown, level = not are_progress_bars_disabled(), get_verbosity()
    set_verbosity(logging.ERROR)
    if shown:
        disable_progress_bars()
    try:
        yield
    finally:
        set_verbosity(level)
        if shown:
            enable_progress_bars()


@contextmanager
def _in_a_sentence(name: str, repo: str) -> Iterator[None]:
    """Turn what the client raises into a sentence: its errors have no base of their own, and change with it."""
    try:
        yield
    except Exception as error:
        of_the_network = isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _NETWORK
        if disk_is_full(error) or not of_the_network:
            raise
        raise WeightsError(_reason(name, repo, error)) from error


def _reason(name: str, repo: str, error: Exception) -> str:
    from huggingface_hub import errors

    by_hand = f"or put {FILES[0]} of {repo} into a --weights folder as {name}.safetensors"
    again = f"pull {name} again, which goes on with what came so far, {by_hand}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{name} cannot be pulled while HF_HUB_OFFLINE is set; unset it, {by_hand}"
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is only for who has accepted its terms; do that on the Hub and log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError | errors.EntryNotFoundError | errors.RevisionNotFoundError):
        return f"the Hub has no {repo} with {name}, or it is private; check the name, {by_hand}"
    if isinstance(error, errors.HfHubHTTPError):
        status = getattr(error.response, "status_code", "?")
        return f"the Hub answers {status} for {repo}; {again}"
    said = " ".join(str(error).split())[:100] or type(error).__name__
    return f"the connection to the Hub broke ({said}); {again}"
