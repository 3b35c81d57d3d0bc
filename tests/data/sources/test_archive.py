"""Archives come from anybody: whatever is in them, nothing is written outside, and limits hold."""

from __future__ import annotations

import io
import shutil
import stat
import tarfile
import zipfile
from collections import namedtuple
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.sources.forms import add
from fitwithin.data.sources import archive
from fitwithin.data.sources.door import open_dataset
from fitwithin.errors import DataError

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(number: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n%d" % number


def good(write: Callable[[str, bytes], object]) -> None:
    """Twelve pictures of two classes."""
    for number in range(12):
        write(f"{('cat', 'dog')[number % 2]}/{number}.png", picture(number))


def zipped(path: Path, *evil: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        good(file.writestr)
        for name, content in evil:
            file.writestr(name, content)
    return path


def test_a_colon_leads_nowhere(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as file:
        for number in range(4):
            file.writestr(f"{('12:30', '12:45')[number % 2]}/{number}.png", picture(number))
    assert open_dataset(tmp_path / "data.zip").classes == ("12:30", "12:45")


def tarred(path: Path, *evil: tarfile.TarInfo, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:
        good(lambda name, content: add(file, name, content))
        for info in evil:
            file.addfile(info, io.BytesIO(b"x" * info.size))
    return path


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.size = kind, link, size
    return found


def refused(path: Path, cache: Path) -> str:
    """The sentence with which an archive is refused; nothing of it is left, nor anything beside it."""
    beside = {each for each in path.parent.rglob("*") if cache not in each.parents}
    with pytest.raises(DataError) as caught:
        open_dataset(path)
    assert not list((cache / "sources").glob("*"))
    assert {each for each in path.parent.rglob("*") if cache not in each.parents} | {cache} == beside | {cache}
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_good_archives_are_read(tmp_path: Path) -> None:
    found = [open_dataset(zipped(tmp_path / "data.zip")), open_dataset(tarred(tmp_path / "data.tar"))]
    found += [
        open_dataset(tarred(tmp_path / f"data.{end}", mode=f"w:{how}"))
        for end, how in (("tar.gz", "gz"), ("tgz", "gz"), ("tar.bz2", "bz2"), ("txz", "xz"))
    ]
    assert len({each.fingerprint for each in found}) == 1
    assert len(found[0].samples) == 12
    modes = {stat.S_IMODE(file.stat().st_mode) for file in found[0].root.rglob("*.png")}
    assert all(mode & 0o111 == 0 for mode in modes)


OUTSIDE = ["../x.png", "cat/../../x.png", "/x.png", "\\x.png", "..\\..\\x.png", "C:/x.png", "C:x.png", "a/..", "./../x"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out_are_refused(tmp_path: Path, cache: Path, name: str) -> None:
    assert "leads out of the folder and is not unpacked; unpack it yourself" in refused(
        zipped(tmp_path / "data.zip", (name, b"x")), cache
    )
    assert "leads out of the folder" in refused(tarred(tmp_path / "data.tar", info(name)), cache)


@settings(max_examples=60)
@given(
    parts=st.lists(st.sampled_from(["..", ".", "", "cat", "x", "/", "\\", "~", "...", "C:", "nul", "a\n"]), max_size=6),
    joint=st.sampled_from(["/", "\\", "//"]),
)
def test_whatever_a_member_is_called_nothing_is_written_outside(
    parts: list[str], joint: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    name = joint.join([*parts, "new.png"])
    root = tmp_path_factory.mktemp("evil")
    with tarfile.open(root / "data.tar", "w") as file:
        add(file, name, b"new")
    into = root / "a" / "b" / "into"
    into.mkdir(parents=True)
    try:
        archive.unpack_all([root / "data.tar"], into, until_at=float("inf"))
    except DataError:
        found = []
    else:
        found = [path for path in into.rglob("*") if path.is_file()]
        assert len(found) == 1
    files = {path for path in root.rglob("*") if path.is_file()}
    assert files == {root / "data.tar", *found}
    assert not Path("/new.png").exists()


LINKS = {
    "a symbolic link": (tarfile.SYMTYPE, "/etc/passwd"),
    "a link out": (tarfile.SYMTYPE, "../.."),
    "a hard link": (tarfile.LNKTYPE, "cat/0.png"),
    "a device": (tarfile.CHRTYPE, ""),
    "a disk": (tarfile.BLKTYPE, ""),
    "a pipe": (tarfile.FIFOTYPE, ""),
}


@pytest.mark.parametrize(("kind", "link"), LINKS.values(), ids=LINKS.keys())
def test_links_and_devices_are_refused(tmp_path: Path, cache: Path, kind: bytes, link: str) -> None:
    evil = tarred(tmp_path / "data.tar", info("cat/x.png", kind, link), info("cat/x.png/passwd.png", size=3))
    assert "'cat/x.png', a link or a device, which is not unpacked" in refused(evil, cache)


def test_links_in_zips_are_refused(tmp_path: Path, cache: Path) -> None:
    link = zipfile.ZipInfo("cat/x.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert "a link or a device" in refused(zipped(tmp_path / "data.zip", (link, b"/etc/passwd")), cache)


def test_encrypted_members_are_refused(tmp_path: Path, cache: Path) -> None:
    path = zipped(tmp_path / "data.zip")
    content = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.find(mark) + at] |= 1
    path.write_bytes(content)
    assert "encrypted, which is not unpacked" in refused(path, cache)


def test_two_files_of_one_name_are_refused(tmp_path: Path, cache: Path) -> None:
    for name in ("cat//0.png", "cat\\0.png", "cat/0.png/x.png", "cat"):
        assert "twice, or as a file and as a folder" in refused(zipped(tmp_path / "data.zip", (name, b"x")), cache)
    assert "twice, or as a file and as a folder" in refused(tarred(tmp_path / "data.tar", info("cat/0.png")), cache)


def test_bombs_are_refused_at_their_limit(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LEAST_BYTES", 100_000)
    bomb = zipped(tmp_path / "data.zip", ("cat/x.png", bytes(3_000_000)))
    said = refused(bomb, cache)
    assert "unpacks to more than" in said
    assert "unpack it yourself, if you trust it, and give the folder" in said
    assert "unpacks to more than" in refused(
        tarred(tmp_path / "data.tar.gz", info("cat/x.png", size=3_000_000), mode="w:gz"), cache
    )


def test_a_zip_that_lies_about_its_sizes_is_refused(tmp_path: Path, cache: Path) -> None:
    path = zipped(tmp_path / "data.zip", ("cat/x.png", bytes(5000)))
    content = path.read_bytes().replace((5000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    path.write_bytes(content)
    assert "is damaged at 'cat/x.png'" in refused(path, cache)


def test_too_many_members_are_refused(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_MEMBERS", 11)
    for path in (zipped(tmp_path / "data.zip"), tarred(tmp_path / "data.tar")):
        assert "has more than 11 files, the most that are unpacked; unpack it yourself" in refused(path, cache)


def test_headers_that_would_fill_the_memory_are_refused(tmp_path: Path, cache: Path) -> None:
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
        path = tmp_path / "data.tar"
        huge = info("x", kind)
        huge.size = 8 * 2**30
        path.write_bytes(huge.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
        assert "is damaged (a header of 8.00 GiB)" in refused(path, cache)


@pytest.mark.parametrize(("name", "mode"), [("x.zip", ""), ("x.tar", "w"), ("x.tar.gz", "w:gz"), ("x.txz", "w:xz")])
def test_damage_is_a_sentence(tmp_path: Path, cache: Path, name: str, mode: str) -> None:
    path = tmp_path / name
    content = (tarred(path, mode=mode) if mode else zipped(path)).read_bytes()
    for damaged in (b"", b"no archive", content[: len(content) // 2], content[: len(content) // 3]):
        path.write_bytes(damaged)
        assert "is damaged" in refused(path, cache)


@settings(max_examples=80)
@given(data=st.data(), kind=st.sampled_from(["zip", "tar", "tar.gz"]))
def test_flipped_bytes_are_data_or_a_sentence(
    data: st.DataObject, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("flipped")
    path = root / f"data.{kind}"
    if kind == "zip":
        zipped(path)
    else:
        tarred(path, mode="w:gz" if kind == "tar.gz" else "w")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content), 4000) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    into = root / "into"
    into.mkdir()
    with suppress(DataError, OSError):  # whoever unpacks makes a sentence of what the disk refuses
        archive.unpack_all([path], into, until_at=float("inf"))
    assert {each for each in root.rglob("*") if each.is_symlink()} == set()
    assert {each.name for each in root.iterdir()} == {path.name, "into"}


def test_too_little_room_is_said_with_the_way_out(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 5000))
    for path in (zipped(tmp_path / "data.zip"), tarred(tmp_path / "data.tar")):
        said = refused(path, cache)
        assert "more where" in said
        assert "0 B to spare; free some space or set FITWITHIN_CACHE" in said


def test_a_cache_that_cannot_be_written_is_a_sentence(tmp_path: Path, cache: Path) -> None:
    cache.mkdir()
    (cache / "sources").write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"data.zip cannot be unpacked into .*/cache/sources .*FITWITHIN_CACHE"):
        open_dataset(zipped(tmp_path / "data.zip"))


def test_what_is_shown_is_the_archive_and_not_the_cache(tmp_path: Path, cache: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as file:
        for number in range(3):
            file.writestr(f"train/cat/{number}.png", picture(number))
            file.writestr(f"val/cow/{number}.png", picture(number + 5))
    with pytest.raises(DataError, match=r"data.zip/val has the class 'cow', which .*data.zip/train does not have"):
        open_dataset(tmp_path / "data.zip")
