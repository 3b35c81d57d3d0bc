"""``fitwithin weights``: what it prints of weights on this machine, and a pull by the real client."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fitwithin.cli.main import app
from fitwithin.errors import UsageError, WeightsError
from simulated.hub import Hub, Repository, served

NAME = "test_vit.r160_in1k"
FAT = "vit_base_patch32_clip_224.laion2b_ft_in12k_in1k"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fitwithin.weights.sources.PACKAGES", ())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "w"
    folder.mkdir()
    for name in (NAME, FAT, "resnet50.a1_in1k"):
        (folder / f"{name}.pth").write_bytes(b"weights")
    (folder / "convnextv2_atto.fcmae_ft_in1k.pth").write_bytes(b"weights")
    return folder


def printed(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["weights", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_list_shows_what_may_be_used_and_what_is_refused(folder: Path) -> None:
    text = printed("list", "--weights", str(folder))
    assert re.search(rf"{re.escape(NAME)} +apache-2.0 +7 B +160 +folder ", text)
    assert re.search(r"resnet50\.a1_in1k +apache-2.0 +7 B +224/288 ", text)
    assert "refused: convnextv2_atto.fcmae_ft_in1k" in text
    assert "--licences permissive,cc-by-nc-4.0 permits it" in text
    permitted = printed("list", "--weights", str(folder), "--licences", "permissive,cc-by-nc-4.0")
    assert "refused" not in permitted
    assert re.search(r"convnextv2_atto\.fcmae_ft_in1k +cc-by-nc-4\.0", permitted)


def test_the_table_fits_80_columns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"COLUMNS": "80", "FORCE_COLOR": "1", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    text = re.sub(r"\x1b\[[\d;]*m", "", printed("list", "--weights", str(folder)))
    lines = [line for line in text.splitlines() if not line.startswith("refused")]
    assert max(map(len, lines)) <= 80
    assert any(re.match(rf"{re.escape(FAT)} +apache-2\.0 +7 B +224", line) for line in lines)
    assert sum(line.startswith("  folder ") for line in lines) == 3


def test_list_as_json(folder: Path) -> None:
    value = json.loads(printed("list", "--weights", str(folder), "--json"))
    (mine,) = (each for each in value["weights"] if each["name"] == NAME)
    assert (mine["licence"], mine["px"], mine["size_bytes"]) == ("apache-2.0", 160, 7)
    assert [each["licence"] for each in value["refused"]] == ["cc-by-nc-4.0"]


def test_nothing_is_there(folder: Path) -> None:
    assert "no pretrained weights are on this machine; `fitwithin weights pull` fetches some" in printed("list")


def test_show(folder: Path) -> None:
    for name in ("resnet50", "resnet50.a1_in1k"):
        lines = dict(re.split(r"  +", line) for line in printed("show", name, "--weights", str(folder)).splitlines())
        assert lines["name"] == "resnet50.a1_in1k"
        assert lines["trained on"] == "ImageNet-1k"
        assert (lines["trained at"], lines["better at"], lines["size"]) == ("224 px", "288 px", "7 B")
        assert len(lines["sha256"]) == 64
    (row,) = json.loads(printed("show", NAME, "--weights", str(folder), "--json"))
    assert row["crop_pct"] == 0.95
    assert "which is not among those permitted" in printed("show", "convnextv2_atto", "--weights", str(folder))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet18", "no weights called resnet18 are on this machine; `fitwithin weights pull resnet18` fetches them"),
        ("resnet5O", "no weights called resnet5O are on this machine; did you mean resnet50"),
    ],
)
def test_show_what_is_not_there(name: str, words: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=words):
        printed("show", name)


@pytest.fixture
def hub() -> Hub:
    with served() as hub:
        for name in (NAME, "test_resnet.r160_in1k"):
            files = {"model.safetensors": name.encode() * 10_000}
            hub.repositories[f"timm/{name}"] = Repository(files, {"license": "apache-2.0"})
        yield hub


def run(hub: Hub, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: the client reads the Hub's address when it is imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "FITWITHIN_CACHE": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-W", "error", "-m", "fitwithin", "weights", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_pull_then_list(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, "pull", "test_vit", "test_resnet")
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = done.stdout.splitlines()
    assert first == f"2 files, 381 KiB, to {tmp_path / 'cache' / 'pretrained'}"
    assert lines[0] == f"1 of 2: {NAME}, 176 KiB"
    assert lines[1] == "2 of 2: test_resnet.r160_in1k, 205 KiB"
    assert re.fullmatch(
        rf"{re.escape(str(tmp_path))}.*/{re.escape(NAME)}\.safetensors: apache-2\.0, sha256 \w{{8}}", lines[2]
    )
    found = json.loads(run(hub, tmp_path, "list", "--json").stdout)["weights"]
    assert found[0]["source"] == "pulled, from Hugging Face Hub, timm/test_resnet.r160_in1k"
    again = json.loads(run(hub, tmp_path, "pull", NAME, "--json").stdout)
    assert [each["name"] for each in again] == [NAME]
    assert sum("/cdn/" in line for line in hub.asked) == 2


def test_pull_what_is_not_permitted(hub: Hub, tmp_path: Path) -> None:
    hub.repositories[f"timm/{NAME}"].card = {"license": "cc-by-nc-4.0"}
    done = run(hub, tmp_path, "pull", NAME, "--to", str(tmp_path / "to"))
    assert (done.returncode, done.stdout) == (WeightsError.exit_code, "")
    assert done.stderr.startswith(f"fitwithin: the licence of {NAME} is cc-by-nc-4.0")
    assert not (tmp_path / "to").exists()
    run(hub, tmp_path, "pull", NAME, "--to", str(tmp_path / "to"), "--licences", "permissive,cc-by-nc-4.0")
    assert (tmp_path / "to" / f"{NAME}.safetensors").is_file()
