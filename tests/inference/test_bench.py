"""bench: what passes of a model take on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fitwithin.cli.main import app
from fitwithin.inference import bench
from fitwithin.inference.model import Model
from fitwithin.machine import CPU
from inference.test_handed_over import handed_over


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few passes."""
    monkeypatch.setattr(bench, "SECONDS", 0.0)


@pytest.mark.usefixtures("brief")
def test_the_passes_of_each_batch(tmp_path: Path) -> None:
    handed_over(tmp_path, "test_efficientnet", (48, 64))
    found = list(bench.measure(Model(tmp_path), CPU, [4, 1, 4]))
    assert [each.batch for each in found] == [1, 4]
    for each in found:
        assert each.passes == bench.LEAST_PASSES
        assert 0 < each.p50_ms <= each.p99_ms
        assert each.images_per_s == pytest.approx(1e3 * each.batch / each.p50_ms)
        assert each.peak_bytes > 0


@pytest.mark.usefixtures("brief")
def test_by_the_command(tmp_path: Path) -> None:
    handed_over(tmp_path, "test_resnet")
    shown = CliRunner().invoke(app, ["bench", str(tmp_path), "--device", "cpu", "--batch", "2, 1", "--json"])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert [each["batch"] for each in found["passes"]] == [1, 2]
    read = CliRunner().invoke(app, ["bench", str(tmp_path), "--device", "cpu"])
    assert "images a pass" in read.stdout


@pytest.mark.parametrize("words", ["0", "a", "1,,2", "99999"])
def test_what_is_no_list_of_batches_is_refused(tmp_path: Path, words: str) -> None:
    handed_over(tmp_path, "test_resnet")
    found = CliRunner().invoke(app, ["bench", str(tmp_path), "--batch", words])
    assert "as in 1,8,32" in str(found.exception)
