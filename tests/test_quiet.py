"""Who may work while another measures."""

from __future__ import annotations

import threading
import time

from fitwithin.engine.quiet import Quiet


def soon() -> float:
    return time.monotonic() + 10.0


def test_one_alone_measures_at_once() -> None:
    quiet = Quiet()
    with quiet.visit() as visit:
        assert visit.alone(soon())
    with quiet.visit() as visit:
        assert visit.alone(soon())


def test_nobody_measures_while_another_works() -> None:
    quiet = Quiet()
    with quiet.visit(), quiet.visit() as visit:
        assert not visit.alone(time.monotonic() + 0.05)
    with quiet.visit() as visit:
        assert visit.alone(soon()), "a wait that was given up left traces"


def test_measuring_is_for_one_and_work_goes_on_beside_a_process_that_leaves() -> None:
    """Every lane works, measures alone, works again: never two where one measures."""
    quiet, lock = Quiet(), threading.Lock()
    working, measuring, wrong = 0, 0, []

    def lane() -> None:
        nonlocal working, measuring
        for _ in range(20):
            with quiet.visit() as visit:
                with lock:
                    working += 1
                    if measuring:
                        wrong.append("began beside a measurement")
                time.sleep(0.0005)
                with lock:
                    working -= 1
                assert visit.alone(soon())
                with lock:
                    measuring += 1
                    if measuring > 1 or working:
                        wrong.append("measured beside others")
                time.sleep(0.0005)
                with lock:
                    measuring -= 1
                visit.back()
                time.sleep(0.0005)

    threads = [threading.Thread(target=lane) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong
