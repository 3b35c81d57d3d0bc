"""The margins of time in one table, each with its measured reason."""

from __future__ import annotations

#: A trainer is given this much less than its watchdog, so that it ends by itself; EXIT_S is for leaving a process.
WATCHDOG_S, EXIT_S = 0.2, 0.3

#: An evaluation by the process that trained is tried out on so many batches of each size, for this share of the turn at
#: most; what it will take is known to this share by that; the process is asked for it so soon. (Without a margin to
#: speak of, five evaluations of six took 0.15 to 0.7 s longer, and two did not get through test: docs/log.md.)
REHEARSED_BATCHES, REHEARSAL_SHARE, REHEARSED_MARGIN, HANDOVER_S = 8, 0.01, 0.1, 0.15

#: On a GPU the charts are drawn while the winner is evaluated, for which so many seconds are kept at the least.
MEANWHILE_S = 0.4

#: A view's cost is measured over so many passes of a batch, fewer where they take so many seconds.
VIEW_PASSES, VIEW_S = 5, 0.1

#: The end of a run, in seconds. CLOSING_S are kept for it: choosing views, the report and the process's end. When the
#: books close, ENDING_S are charged for what follows: writing the result, receipt and report takes 0.05 to 0.3 s (two
#: cores, 80 candidates), ending the workers and the process 0.16 to 0.39 s, for which LEAVING_S must be left of them.
CLOSING_S, ENDING_S, LEAVING_S = 1.5, 0.6, 0.2

#: Whoever goes on with a run of which so many seconds are left starts no worker: a start takes 3 to 5 s on two cores.
#: What there is by then is handed over.
HAND_OVER_S = 5.0
