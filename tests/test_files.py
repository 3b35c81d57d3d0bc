"""Where things are kept, and what may not be written over. What a command says of it: e2e/test_bad_input.py."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest

from fitwithin.errors import RunFolderError
from fitwithin.files import cache_root, check_free, create_run_dir, remove_run_dir, write_atomic, write_text_atomic


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
    made = create_run_dir(tmp_path / "there" / "new" / "run")
    assert made == [tmp_path / "there" / "new" / "run", tmp_path / "there" / "new"]
    (tmp_path / "there" / "new" / "run" / "candidates" / "a").mkdir(parents=True)
    (tmp_path / "there" / "new" / "run" / "run.db").touch()
    remove_run_dir(tmp_path / "there" / "new" / "run", made)
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


@pytest.mark.parametrize("how", [{}, {"fsync": True}, {"shared": True}])
def test_a_file_is_there_whole_or_as_it_was(tmp_path: Path, how: dict[str, bool]) -> None:
    path = tmp_path / "card.json"
    write_text_atomic(path, "the first, ü", **how)

    def write(new: Path) -> None:
        assert new.parent == path.parent, "so that it can be put in place in one step"
        new.write_text("the sec")
        assert path.read_text(encoding="utf-8") == "the first, ü"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, write, **how)
    assert path.read_text(encoding="utf-8") == "the first, ü"
    write_text_atomic(path, "the second", **how)
    assert path.read_text() == "the second"


def test_several_may_put_a_file_of_the_cache_at_once(tmp_path: Path) -> None:
    path, together = tmp_path / "names.json", Barrier(8)

    def write(new: Path, text: str) -> None:
        new.write_text(text)
        together.wait(10)  # all have written theirs before any puts it in place

    texts = [str(n) * 1000 for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(write_atomic, path, partial(write, text=text), shared=True) for text in texts]:
            done.result()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path], "nothing else is left"
