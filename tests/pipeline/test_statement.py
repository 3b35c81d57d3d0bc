"""What `fitwithin budget` says of a run's books."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fitwithin.errors import RunFolderError
from fitwithin.events import RunRequested
from fitwithin.ledger import EntryAbandoned, EntryOpened, EntrySettled, Heartbeat, LedgerEvent
from fitwithin.pipeline import statement
from fitwithin.store import Store
from simulated.run import fold, request


def events(*, ended: bool) -> list[LedgerEvent]:
    told: list[LedgerEvent] = [
        EntryOpened(number=1, phase="start-up", key="", gpus=0, reserved_s=0.0),
        EntrySettled(number=1, charged_s=4.0),
        EntryOpened(number=2, phase="train", key="resnet18-amp-160", gpus=2, reserved_s=60.0),
        Heartbeat(number=2, elapsed_s=7.0, peak_bytes=2**30),
    ]
    return [*told, EntryAbandoned(number=2, charged_s=9.0)] if ended else told


def test_an_open_entry_is_reserved_in_full() -> None:
    found = statement.make_statement(fold(events(ended=False)), request(time_s=100.0, gpu_time_s=150.0))
    time, device = found.accounts
    assert (time.settled_s, time.reserved_s, time.left_s) == (4.0, 60.0, 36.0)
    assert (device.settled_s, device.reserved_s, device.left_s) == (0.0, 120.0, 30.0)
    assert found.rows()[1] == [
        "2",
        "train",
        "resnet18-amp-160",
        "2",
        "1m 00s",
        "open, 7.0s at its last heartbeat",
        "1.00 GiB",
    ]
    assert "4.0s settled and 1m 00s reserved of 1m 40s; 36.0s left" in found.sentences()[0]


def test_an_abandoned_one_is_charged_and_said_to_be() -> None:
    found = statement.make_statement(fold(events(ended=True)), request(time_s=100.0))
    (time,) = found.accounts
    assert (time.settled_s, time.reserved_s) == (13.0, 0.0)
    assert found.rows()[1][5] == "9.0s (abandoned)"
    assert json.loads(json.dumps(found.to_dict()))["accounts"][0]["left_s"] == 87.0


def test_what_stands_beside_the_chain_counts_for_the_devices_alone() -> None:
    told: list[LedgerEvent] = [
        EntryOpened(number=1, phase="train", key="", gpus=0, reserved_s=80.0),
        EntryOpened(number=2, phase="train", key="a", gpus=1, reserved_s=60.0, concurrent=True),
        EntryOpened(number=3, phase="train", key="b", gpus=1, reserved_s=50.0, concurrent=True),
        EntrySettled(number=2, charged_s=12.0),
    ]
    found = statement.make_statement(fold(told), request(time_s=100.0, gpu_time_s=150.0))
    time, device = found.accounts
    assert (time.settled_s, time.reserved_s, time.left_s) == (0.0, 80.0, 20.0)
    assert (device.settled_s, device.reserved_s, device.left_s) == (12.0, 50.0, 88.0)
    assert [row[5] for row in found.rows()] == [
        "open, 0s at its last heartbeat",
        "12.0s (concurrent)",
        "open, concurrent, 0s at its last heartbeat",
    ]
    assert [entry["concurrent"] for entry in found.to_dict()["entries"]] == [False, True, True]


def test_it_can_be_read_while_another_process_writes(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        with pytest.raises(RunFolderError, match="it holds no request"):
            statement.read(tmp_path)
        store.append(RunRequested(request=request(time_s=100.0)))
        for event in events(ended=False):
            if isinstance(event, Heartbeat):
                store.beat(event.number, event)
            else:
                store.append(event)
        entries = statement.read(tmp_path).entries
        assert [(entry.charged_s is None, entry.heartbeat_s) for entry in entries] == [(False, 0.0), (True, 7.0)]


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is no run's folder \(no run.db\)"):
        statement.read(tmp_path)
