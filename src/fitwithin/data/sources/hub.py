"""Data sets by their name on the Hugging Face Hub: those that are in this machine's cache. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

from fitwithin.errors import DataError

#: How such a name begins: hf:owner/name, or hf:owner/name/folder for a part of it.
PREFIX = "hf:"


def snapshot(name: str) -> Path:
    """The folder in the Hub client's cache with a data set, or with one folder of it.

    Raises:
        DataError: it is not there, or that is no name.
    """
    owner, _, rest = name.removeprefix(PREFIX).partition("/")
    repo, _, part = rest.partition("/")
    if not owner or not repo or ".." in part.split("/"):
        raise DataError(f"{name!r} names no data set of the Hub; write hf:owner/name, or hf:owner/name/folder")
    from huggingface_hub import snapshot_download  # a third of a second
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = Path(snapshot_download(f"{owner}/{repo}", repo_type="dataset", local_files_only=True))
    except HFValidationError as error:
        raise DataError(f"{name!r} names no data set of the Hub ({error}); write hf:owner/name") from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise DataError(
            f"{name} is not on this machine, and a run downloads nothing; fetch it first with: "
            f"hf download {owner}/{repo} --repo-type dataset"
        ) from error
    if not (found / part).is_dir():
        raise DataError(f"{name}: there is no folder {part!r} in {found}; it may not have been fetched")
    return found / part
