"""Reads the driver's count of every process on a GPU until it is ended, then writes the peak of each.

    python benchmarks/watch.py OUTPUT.json --index 0 --of PID

With ``--of`` it leaves out what is known not to descend from that process: other runs may share the GPU.

A witness of its own: it shares nothing with the processes it watches, and keeps how long it ever looked away.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import time
from pathlib import Path

#: Between two readings, in seconds; a reading takes 1 to 3 ms more.
PAUSE_S = 0.005


def main() -> None:
    """Watch until SIGTERM."""
    import pynvml

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--of", type=int, default=None, help="watch the descendants of this process")
    arguments = parser.parse_args()
    ended = False

    def end(number: int, frame: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    with contextlib.suppress(OSError):
        os.nice(-10)
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(arguments.index)
    peaks: dict[int, int] = {}
    belongs: dict[int, bool] = {}
    gaps_s: list[float] = []
    seen_at = time.monotonic()
    while not ended:
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid not in belongs:
                belongs[process.pid] = arguments.of is None or descends(process.pid, arguments.of)
            if not belongs[process.pid]:
                continue
            peaks[process.pid] = max(peaks.get(process.pid, 0), process.usedGpuMemory or 0)
        now = time.monotonic()
        gaps_s.append(now - seen_at)
        seen_at = now
        time.sleep(PAUSE_S)
    ordered = sorted(gaps_s)
    arguments.output.write_text(
        json.dumps(
            {
                "readings": len(ordered),
                "gap_ms_median": 1e3 * ordered[len(ordered) // 2],
                "gap_ms_p999": 1e3 * ordered[int(0.999 * (len(ordered) - 1))],
                "gap_ms_max": 1e3 * ordered[-1],
                "gaps_over_20_ms": sum(gap_s > 0.02 for gap_s in ordered),
                "peaks": peaks,
            }
        ),
        encoding="utf-8",
    )


def descends(pid: int, ancestor: int) -> bool:
    """Whether the process descends from the other; also yes if its parents cannot be read, so that none is missed."""
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return True
        pid = int(stat.rpartition(")")[2].split()[1])
    return False


if __name__ == "__main__":
    main()
