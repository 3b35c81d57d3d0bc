"""Weights are pulled by the Hub's own client from a Hub on this machine: whole, with the right hash, or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fitwithin.errors import DiskFull, UsageError, WeightsError
from fitwithin.weights import hub as client
from fitwithin.weights.configs import config_of
from fitwithin.weights.find import find
from fitwithin.weights.licences import PERMISSIVE
from simulated.hub import REVISION, Hub, Repository, served

NAME = "test_vit.r160_in1k"
REPO = f"timm/{NAME}"

#: Enough for several reads of the client's connection, so that a cut comes in the middle.
CONTENT = bytes(range(256)) * 4096


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    import huggingface_hub

    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with served() as hub:
        # The client reads HF_ENDPOINT when it is imported; tests/cli/test_weights.py sets that.
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 2**16)  # it keeps whole chunks: 10 MB
        hub.repositories[REPO] = Repository({"model.safetensors": CONTENT, "README.md": b""}, {"license": "apache-2.0"})
        yield hub
        huggingface_hub.close_session()


class Watcher:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, offer: client.Offer, done: int) -> None:
        assert offer.size_bytes == len(CONTENT), "the size is known from the first call on"
        self.seen.append(done)


def pull(folder: Path, watcher: Watcher | None = None, name: str = NAME) -> client.Pulled:
    (pulled,) = client.pull([name], folder, licences=PERMISSIVE, on_progress=watcher or Watcher())
    return pulled


def downloads(hub: Hub) -> list[str]:
    return [line for line in hub.asked if "/cdn/" in line]


def test_what_is_pulled_is_found_with_its_source_and_licence(hub: Hub, tmp_path: Path) -> None:
    watcher = Watcher()
    pulled = pull(tmp_path / "cache" / "pretrained", watcher, name="test_vit")
    assert Path(pulled.path).read_bytes() == CONTENT
    assert (pulled.name, pulled.licence, pulled.revision) == (NAME, "apache-2.0", REVISION)
    assert watcher.seen[0] == 0
    assert watcher.seen[-1] == len(CONTENT)
    assert watcher.seen == sorted(watcher.seen)
    beside = json.loads(Path(pulled.path).with_name(f"{NAME}.json").read_text(encoding="utf-8"))
    assert (beside["repo"], beside["sha256"], beside["size_bytes"]) == (REPO, pulled.sha256, len(CONTENT))
    assert sorted(path.name for path in Path(pulled.path).parent.iterdir()) == [f"{NAME}.json", f"{NAME}.safetensors"]
    found = next(each for each in find(None, PERMISSIVE)[0] if each.name == NAME)
    assert (found.path, found.sha256, found.licence) == (pulled.path, pulled.sha256, "apache-2.0")
    assert found.source == f"pulled, from Hugging Face Hub, {REPO}"
    assert hub.tokens == {"127.0.0.1"}, "the Hub knows its user, where its files lie does not"


def test_what_is_there_is_not_pulled_again(hub: Hub, tmp_path: Path) -> None:
    first = pull(tmp_path)
    before, watcher = len(downloads(hub)), Watcher()
    assert pull(tmp_path, watcher) == first
    assert len(downloads(hub)) == before
    assert watcher.seen == [len(CONTENT)]


def test_a_connection_that_breaks_once_goes_on_by_itself(hub: Hub, tmp_path: Path) -> None:
    hub.cuts = [300_000]
    watcher = Watcher()
    assert Path(pull(tmp_path, watcher).path).read_bytes() == CONTENT
    assert len(downloads(hub)) == 2
    assert watcher.seen == sorted(watcher.seen)


def test_a_pull_that_broke_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    class Stops(Watcher):
        def __call__(self, offer: client.Offer, done: int) -> None:
            super().__call__(offer, done)
            hub.down = done > 0

    hub.cuts = [300_000]
    with pytest.raises(
        WeightsError, match=r"the connection to the Hub broke .* again, which goes on with what came so far"
    ):
        pull(tmp_path, Stops())
    (part,) = tmp_path.glob("*.part")
    have = part.stat().st_size
    assert 0 < have < len(CONTENT)
    assert not list(tmp_path.glob("*.safetensors"))
    assert find(tmp_path, PERMISSIVE)[1] == []
    hub.down, hub.asked[:], watcher = False, [], Watcher()
    assert Path(pull(tmp_path, watcher).path).read_bytes() == CONTENT
    assert downloads(hub) == [f"GET /cdn/{REPO}/model.safetensors bytes={have}-"]
    assert watcher.seen[0] == have
    assert not part.exists()


def test_a_server_that_cannot_go_on_starts_anew(hub: Hub, tmp_path: Path) -> None:
    hub.cuts, hub.ranged = [300_000], False
    assert Path(pull(tmp_path).path).read_bytes() == CONTENT


def test_a_wrong_hash_is_removed(hub: Hub, tmp_path: Path) -> None:
    hub.repositories[REPO].false_sha256 = "ab" * 32
    with pytest.raises(
        WeightsError, match=r"is not what the Hub announces \(sha256 \w{8}, not abababab\), it was removed"
    ):
        pull(tmp_path)
    assert not list(tmp_path.glob("test_vit*"))


def test_another_file_in_its_place_is_replaced(hub: Hub, tmp_path: Path) -> None:
    path = Path(pull(tmp_path).path)
    path.write_bytes(b"something else")
    (refused,) = find(tmp_path, PERMISSIVE)[1]
    assert "was cut short or changed" in refused.reason
    assert f"pull it again with `fitwithin weights pull {NAME}`" in refused.reason
    assert Path(pull(tmp_path).path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("name", "card", "words"),
    [
        ("convnextv2_atto.fcmae_ft_in1k", {}, "cc-by-nc-4.0.*--licences permissive,cc-by-nc-4.0 permits it"),
        ("res2net50_26w_4s.in1k", {}, "nobody states a licence for res2net50.*--licences permissive,unknown"),
        (NAME, {"license": "cc-by-nc-4.0"}, f"cc-by-nc-4.0.*that is what {REPO} says"),
        (NAME, {"license": "other", "license_name": "Own-Terms"}, "own-terms.*permissive,own-terms"),
    ],
)
def test_a_licence_is_refused_before_anything_is_downloaded(
    hub: Hub, tmp_path: Path, name: str, card: dict[str, str], words: str
) -> None:
    hub.repositories[REPO].card = card
    with pytest.raises(WeightsError, match=words):
        client.pull([NAME, name], tmp_path, licences=PERMISSIVE, on_progress=Watcher())
    assert downloads(hub) == []


def test_a_licence_that_is_permitted_by_name(hub: Hub, tmp_path: Path) -> None:
    hub.repositories[REPO].card = {"license": "CC-BY-NC-4.0"}
    permitted = ("apache-2.0", "cc-by-nc-4.0")
    (pulled,) = client.pull([NAME], tmp_path, licences=permitted, on_progress=Watcher())
    assert pulled.licence == "cc-by-nc-4.0"
    assert [each.licence for each in find(tmp_path, permitted)[0] if each.name == NAME] == ["cc-by-nc-4.0"]
    assert "cc-by-nc-4.0" in find(tmp_path, PERMISSIVE)[1][0].reason


def test_what_the_hub_does_not_have(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"the Hub has no timm/resnet18\.\w+ with"):
        pull(tmp_path, name="resnet18")
    hub.repositories[REPO] = Repository({"README.md": b""}, {})
    with pytest.raises(WeightsError, match=r"holds no model\.safetensors or pytorch_model\.bin with a hash"):
        pull(tmp_path)
    with pytest.raises(UsageError, match=r"timm has no weights called test_vit\.r160; did you mean test_"):
        pull(tmp_path, name="test_vit.r160")
    with pytest.raises(WeightsError, match="timm names no place on the Hub"):
        client.pull(["resnetv2_101d"], tmp_path, licences=("unknown", *PERMISSIVE), on_progress=Watcher())


def test_nobody_answers(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.down = True
    with pytest.raises(WeightsError, match="the connection to the Hub broke") as broke:
        pull(tmp_path)
    assert f"put model.safetensors of {REPO} into a --weights folder as {NAME}.safetensors" in str(broke.value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="while HF_HUB_OFFLINE is set; unset it"):
        pull(tmp_path)


def test_a_full_disk_is_seen_before(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Disk:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda path: Disk)
    with pytest.raises(DiskFull, match=r"needs 1\.00 MiB, the disk with .* has 1000 B left"):
        pull(tmp_path)
    assert downloads(hub) == []


def test_two_do_not_pull_the_same(hub: Hub, tmp_path: Path) -> None:
    class Second(Watcher):
        def __call__(self, offer: client.Offer, done: int) -> None:
            if done == 0:
                with pytest.raises(WeightsError, match=f"another process is pulling {NAME}"):
                    pull(tmp_path)

    assert Path(pull(tmp_path, Second()).path).read_bytes() == CONTENT


def test_the_portfolio_is_permissive_and_known() -> None:
    assert len(set(client.PORTFOLIO)) == 12
    for name in client.PORTFOLIO:
        config = config_of(name)
        assert config is not None
        assert config.name == name
        assert config.licence in PERMISSIVE
        assert config.repo == f"timm/{name}"
