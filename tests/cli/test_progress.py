"""What a person sees while a run lasts, when one trial goes on and when several do."""

from __future__ import annotations

import io
import threading
import time

import pytest
from rich.console import Console

from fitwithin.cli import progress
from fitwithin.cli.progress import Bars, Plain


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


def lines(screen: io.StringIO) -> list[str]:
    return screen.getvalue().splitlines()


def test_plain_lines_name_their_stretch(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trials side by side tell of themselves every so often, each by its own name and its own clock."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    plain = Plain(Console(file=screen, width=80))
    plain.begin("training a", 90, 0)
    now[0] += 5
    plain.begin("training b", 30, 1)
    for _ in range(22):
        now[0] += 1
        plain.advance(int(now[0]) - 100, 90, "epoch 1", 0)
        plain.advance(int(now[0]) - 105, 30, "epoch 2", 1)
    plain.begin("training c", 10, 1)
    now[0] += 16
    plain.advance(3, 10, lane=1)
    plain.begin("evaluating a")
    now[0] += 16
    plain.advance(1, None, "val split")
    assert lines(screen) == [
        "training a",
        "training b",
        "training a: 15/90 epoch 1",
        "training b: 15/30 epoch 2",
        "training c",
        "training c: 3/10",
        "evaluating a",
        "evaluating a: val split",
    ]
    assert progress.PLAIN_EVERY_S == 15


def shown(bars: Bars) -> list[str]:
    return [f"{task.description} {task.completed:g}" for task in bars._bars.tasks]


def test_a_bar_for_each_lane_and_one_for_what_follows(screen: io.StringIO) -> None:
    with Bars(Console(file=screen, width=80, force_terminal=True)) as bars:
        bars.begin("profiling", 3)
        bars.begin("training a", 90, 0)
        assert shown(bars) == ["training a 0"], "the phase before has ended"
        bars.begin("training b", 30, 1)
        bars.advance(7, 90, "", 0)
        bars.advance(9, 30, "", 1)
        assert shown(bars) == ["training a 7", "training b 9"]
        bars.begin("training c", 10, 0)
        assert shown(bars) == ["training b 9", "training c 0"]
        bars.begin("evaluating")
        bars.advance(1, 5, "", 1)  # a last word of somebody who has ended
        bars.advance(2, 5)
        assert shown(bars) == ["evaluating 2"]


@pytest.mark.parametrize("width", [80, 120])
def test_a_narrow_terminal_cuts_names_and_no_numbers(screen: io.StringIO, width: int) -> None:
    console = Console(file=screen, width=width, force_terminal=True)
    name = "training tf_efficientnet_lite2.in1k-amp-bf16-260-channels_last"
    with Bars(console) as bars:
        bars.begin(name, 10_257)
        bars.advance(9_243, 10_257, "epoch 19.4  loss 0.856")
        bars._bars.refresh()
        line = "".join(segment.text for segment in console.render(bars._bars.get_renderable()))
    assert "9243/10257" in line
    assert "0:00:0" in line
    assert line.count("\n") == 1
    assert len(line.rstrip()) <= width
    assert "…" in line
    assert name[:20] in line


def test_lines_of_many_threads_stay_whole(screen: io.StringIO) -> None:
    plain = Plain(Console(file=screen, width=80))
    line = "  a line that is told by several threads at once and must not be mixed with another one"

    def tell(lane: int) -> None:
        plain.begin(f"training {lane}", 5, lane)
        for _ in range(50):
            plain.say(line)

    threads = [threading.Thread(target=tell, args=(lane,)) for lane in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(lines(screen)) == sorted([line] * 200 + [f"training {lane}" for lane in range(4)])
