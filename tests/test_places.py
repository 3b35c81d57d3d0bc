"""Where things are kept, and what may not be written over. What a command says of it: e2e/test_bad_input.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from fitwithin.errors import RunFolderError
from fitwithin.places import cache_root, check_free, make_folder, unmake


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    assert cache_root() == tmp_path / "cache"
    monkeypatch.delenv("FITWITHIN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_root() == Path("/xdg/fitwithin")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_root() == Path("/home/someone/.cache/fitwithin")


def test_a_folder_of_somebody_elses_is_not_free(tmp_path: Path) -> None:
    check_free(tmp_path / "new" / "run")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RunFolderError, match="something else"):
        check_free(tmp_path)
    (tmp_path / "run.db").touch()
    with pytest.raises(RunFolderError, match=r"another run.*fitwithin resume"):
        check_free(tmp_path)


def test_what_came_to_nothing_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    made = make_folder(tmp_path / "there" / "new" / "run")
    assert made == [tmp_path / "there" / "new" / "run", tmp_path / "there" / "new"]
    (tmp_path / "there" / "new" / "run" / "candidates" / "a").mkdir(parents=True)
    (tmp_path / "there" / "new" / "run" / "run.db").touch()
    unmake(tmp_path / "there" / "new" / "run", made)
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]
