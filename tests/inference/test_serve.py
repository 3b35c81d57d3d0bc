"""The service: answers as the model does, and every bad request gets the status that it deserves."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import time
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient

from fitwithin.inference.model import Model
from fitwithin.inference.serve import create_app
from fitwithin.inference.service import Limits
from fitwithin.machine import DeviceName
from inference.test_handed_over import CLASSES, REFERENCE, handed_over

CPU = DeviceName(kind="cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    run = tmp_path_factory.mktemp("run")
    handed_over(run, "test_resnet")
    (run / "model" / "README.md").write_text("a card")
    (run / "receipt.json").write_text('{"finished": true}')
    return Model(run)


def started(client: TestClient) -> TestClient:
    """Once the model is loaded."""
    ended_by = time.monotonic() + 30
    while client.get("/readyz").status_code == 503:
        assert time.monotonic() < ended_by
        time.sleep(0.01)
    return client


@pytest.fixture(scope="module")
def client(model: Model) -> Iterator[TestClient]:
    limits = Limits(body_bytes=200_000, pixels=1_000_000, files=3)
    with TestClient(create_app(model, CPU, limits=limits, hosts=["testserver"])) as found:
        yield started(found)


def image(kind: str = "JPEG", size: tuple[int, int] = (80, 60)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "teal").save(buffer, kind)
    return buffer.getvalue()


def test_one_picture_gets_the_models_answer(client: TestClient, model: Model) -> None:
    content = REFERENCE["3.jpg"]
    found = client.post("/predict", content=content, headers={"Content-Type": "image/jpeg"})
    assert found.status_code == 200
    (answer,) = found.json()["predictions"]
    (expected,) = model.predict(content, device="cpu")
    assert answer["class"] == expected.label
    assert [each["class"] for each in answer["top"]] == [name for name, _ in expected.top]
    assert [each["probability"] for each in answer["top"]] == pytest.approx([p for _, p in expected.top], abs=1e-5)


def test_several_pictures_are_answered_in_order_and_a_broken_one_has_its_reason(client: TestClient) -> None:
    files = [
        ("files", ("a.jpg", REFERENCE["1.jpg"])),
        ("files", ("b.jpg", image()[:300])),
        ("x", ("c.png", image("PNG"))),
    ]
    found = client.post("/predict?top=2", files=files)
    assert found.status_code == 200
    answers = found.json()["predictions"]
    assert [each["name"] for each in answers] == ["a.jpg", "b.jpg", "c.png"]
    assert [each["error"] is None for each in answers] == [True, False, True]
    assert len(answers[0]["top"]) == 2


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


JPEG = {"Content-Type": "image/jpeg"}


@pytest.mark.parametrize(
    ("content", "headers", "status", "words"),
    [
        (b"no image", JPEG, 415, "no picture"),
        (image()[:300], JPEG, 422, "cannot be read"),
        (b"", JPEG, 422, "empty"),
        (image(size=(2000, 1000)), JPEG, 413, "pixels"),
        (bomb(), {"Content-Type": "image/png"}, 413, "pixels"),
        (b"x" * 300_000, JPEG, 413, "larger than 200,000 bytes"),
        (b"{}", {"Content-Type": "application/json"}, 415, "application/json is not taken"),
        (b"x", {}, 415, "without a type"),
        (b"x", {"Content-Type": "multipart/form-data"}, 400, "multipart"),
        (b"--b\r\nno form", {"Content-Type": "multipart/form-data; boundary=b"}, 400, "multipart"),
    ],
)
def test_bad_bodies_have_their_status(
    client: TestClient, content: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    found = client.post("/predict", content=content, headers=headers)
    assert (found.status_code, words in found.text) == (status, True), found.text


def test_too_many_files_are_refused(client: TestClient) -> None:
    found = client.post("/predict", files=[("files", (f"{n}.jpg", image())) for n in range(4)])
    assert (found.status_code, "Too many files" in found.text) == (400, True), found.text


def test_a_body_without_a_length_is_cut_at_the_limit(client: TestClient) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(50):
            yield b"x" * 10_000

    assert client.post("/predict", content=parts(), headers=JPEG).status_code == 413


@pytest.mark.parametrize("top", ["0", "-1", "many", "1001"])
def test_odd_numbers_of_classes_are_refused(client: TestClient, top: str) -> None:
    assert client.post(f"/predict?top={top}", content=image(), headers=JPEG).status_code == 422


def test_other_names_of_the_host_are_refused(client: TestClient) -> None:
    assert client.get("/healthz", headers={"Host": "evil.example"}).status_code == 400


def test_health_facts_and_metrics(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    facts = client.get("/info").json()
    assert (facts["classes"], facts["card"], facts["receipt"]) == (list(CLASSES), "a card", {"finished": True})
    assert facts["passes"][0]["batch"] == 1
    client.get("/some/path/nobody/has")
    text = client.get("/metrics").text
    assert 'fitwithin_requests_total{path="/healthz",status="200"}' in text
    assert 'path="other",status="404"' in text
    assert "nobody" not in text
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/predict", "/healthz", "/readyz", "/info", "/metrics"} <= {*paths}
    assert "image/*" in paths["/predict"]["post"]["requestBody"]["content"]


def test_with_a_token_what_matters_needs_it(model: Model) -> None:
    with TestClient(create_app(model, CPU, token="secret")) as client:
        started(client)
        for bad in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "secret"},
            {"Authorization": "Bearer \u00e9"},
        ):
            sent = {name: value.encode() for name, value in bad.items()}
            assert client.post("/predict", content=image(), headers={**JPEG, **sent}).status_code == 401
            assert client.get("/info", headers=sent).status_code == 401
        good = {"Authorization": "Bearer secret"}
        assert client.post("/predict", content=image(), headers={**JPEG, **good}).status_code == 200
        assert client.get("/metrics", headers=good).status_code == 200
        assert client.get("/healthz").status_code == 200


def test_before_the_model_is_loaded_it_is_not_ready(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fitwithin.inference.service.Service.load", lambda self: None)
    with TestClient(create_app(model, CPU)) as client:
        assert client.get("/healthz").status_code == 200
        found = client.post("/predict", content=image(), headers=JPEG)
        assert (found.status_code, found.headers["retry-after"]) == (503, "2")


def test_a_model_that_cannot_be_loaded_is_said(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("no memory for it")

    monkeypatch.setattr("fitwithin.inference.service.Service.load", fail)
    with TestClient(create_app(model, CPU)) as client:
        time.sleep(0.1)
        assert "no memory for it" in client.get("/readyz").text


def test_when_too_many_wait_the_next_is_told_to_come_again(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from fitwithin.inference.batcher import Batcher, Full

    with TestClient(create_app(model, CPU)) as client:
        started(client)

        def refuse(*_: object) -> None:
            raise Full

        monkeypatch.setattr(Batcher, "submit", refuse)
        found = client.post("/predict", content=image(), headers=JPEG)
        assert (found.status_code, found.headers["retry-after"]) == (429, "1")


def test_an_answer_that_takes_too_long_is_given_up(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import Future

    from fitwithin.inference.batcher import Batcher

    with TestClient(create_app(model, CPU, limits=Limits(answer_s=0.05))) as client:
        started(client)
        monkeypatch.setattr(Batcher, "submit", lambda *_: Future())
        assert client.post("/predict", content=image(), headers=JPEG).status_code == 503


def test_a_body_that_does_not_come_is_given_up(model: Model) -> None:
    """By the protocol itself: a client that waits with the rest of a body."""
    app = create_app(model, CPU, limits=Limits(body_s=0.1))
    sent: list[dict] = []

    async def talk() -> None:
        async with app.router.lifespan_context(app):
            while not app.state.service.ready:
                await asyncio.sleep(0.01)
            messages = [{"type": "http.request", "body": b"abc", "more_body": True}]

            async def receive() -> dict:
                if messages:
                    return messages.pop()
                await asyncio.sleep(60)
                raise AssertionError

            async def send(message: dict) -> None:
                sent.append(message)

            scope = {
                "type": "http",
                "method": "POST",
                "path": "/predict",
                "raw_path": b"/predict",
                "query_string": b"",
                "headers": [(b"content-type", b"image/jpeg"), (b"host", b"localhost")],
                "http_version": "1.1",
                "scheme": "http",
                "server": ("localhost", 80),
                "client": ("localhost", 1),
                "root_path": "",
            }
            await app(scope, receive, send)

    asyncio.run(talk())
    assert sent[0]["status"] == 408
    assert "did not arrive within 0.1 s" in json.loads(sent[1]["body"])["detail"]


def test_many_at_once_all_get_their_own_answer(client: TestClient, model: Model) -> None:
    async def ask() -> list[list[float]]:
        service = client.app.state.service  # type: ignore[attr-defined]
        rows = await asyncio.gather(*(service.predict([REFERENCE[f"{n % 8}.jpg"]]) for n in range(64)))
        return [row[0].probabilities.tolist() for row in rows]

    found = client.portal.call(ask)  # type: ignore[union-attr]
    expected = [
        [dict(each.top)[name] for name in CLASSES] for each in model.predict([*REFERENCE.values()], device="cpu")
    ]
    np.testing.assert_allclose(found, [expected[n % 8] for n in range(64)], atol=1e-4)
