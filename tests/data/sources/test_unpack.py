"""The digest of a whole file: it is of what the file holds, whether it was read now or before."""

from __future__ import annotations

import json
import os
from hashlib import blake2b
from pathlib import Path

import pytest

from fitwithin.data import fingerprint
from fitwithin.data.sources.unpack import content_digest, unpacked
from fitwithin.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "folders"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 1000)
    return tmp_path / "file"


def digest(file: Path) -> str:
    return blake2b(file.read_bytes(), digest_size=16).hexdigest()


def test_a_file_that_was_just_written_is_read_every_time(file: Path, cache: Path) -> None:
    assert content_digest(file) == digest(file)
    assert not cache.exists()


def test_a_file_that_did_not_change_is_not_read_again(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "TICK_S", -3600.0)
    assert content_digest(file) == digest(file)
    (record,) = cache.iterdir()
    told = json.loads(record.read_text())
    record.write_text(json.dumps({**told, "digest": "as told"}))
    assert content_digest(file) == "as told"
    status = file.stat()
    file.write_bytes(bytes(status.st_size))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert content_digest(file) == digest(file)
    for damage in ("", "{", "[]", "{}", '{"status": 1}'):
        record.write_text(damage)
        assert content_digest(file) == digest(file)


def test_a_file_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone cannot be read \(No such file or directory\)"):
        content_digest(tmp_path / "gone")


def test_what_is_unpacked_is_there_whole_or_not_at_all(file: Path, tmp_path: Path) -> None:
    def broken(into: Path) -> None:
        (into / "half").write_text("half")
        raise OSError(5, "Input/output error")

    with pytest.raises(DataError, match="file cannot be unpacked into"):
        unpacked([file], "test", broken, source="file")
    assert list((tmp_path / "cache" / "sources").iterdir()) == []
    made = unpacked([file], "test", lambda into: (into / "whole").write_text("whole"), source="file")
    assert unpacked([file], "test", broken, source="file") == made
    assert (made / "whole").read_text() == "whole"
    other = unpacked([file], "another test", lambda into: (into / "x").touch(), source="file")
    assert other != made
    (made / "more").write_text("more")
    with pytest.raises(DataError):
        unpacked([file], "test", broken, source="file")
