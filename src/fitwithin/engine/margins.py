"""The margins of time in one table, each with its measured reason."""

from __future__ import annotations

#: A trainer ends WATCHDOG_S before it would be killed, so that it ends by itself; EXIT_S is for leaving a process.
WATCHDOG_S, EXIT_S = 0.2, 0.3

#: The process that trained tries its evaluation out on so many batches of each size, for at most this share of the
#: trial. That gives its time to within REHEARSED_MARGIN; HANDOVER_S pass until it begins. (With a margin near 0 five
#: evaluations of six took 0.15 to 0.7 s longer, and two did not finish test: docs/log.md.)
REHEARSED_BATCHES, REHEARSAL_SHARE, REHEARSED_MARGIN, HANDOVER_S = 8, 0.01, 0.1, 0.15

#: A view's cost is measured over so many passes of a batch, fewer where they take so many seconds.
VIEW_PASSES, VIEW_S = 5, 0.1

#: The end of a run, in seconds. CLOSING_S are kept for it, and PROBABILITY_S for each probability of the images of val
#: and test: choosing views, the report and the process's end. (20,000 images of 100 classes: 1.6 s on an H200's host,
#: beside another run.) When the books close, ENDING_S are charged for the rest: writing result, receipt and report
#: takes 0.05 to 0.3 s (two cores, 80 candidates), ending the workers and the process 0.16 to 0.39 s, for which
#: LEAVING_S must be left of them.
CLOSING_S, PROBABILITY_S, ENDING_S, LEAVING_S = 1.5, 5e-7, 0.6, 0.2

#: A run that is resumed with fewer seconds left starts no worker, since a start takes 3 to 5 s on two cores: it
#: delivers the model that is there.
HAND_OVER_S = 5.0

#: When one of several processes of a trial has failed, the others have so many seconds to report their own error: the
#: first report may come from one that only noticed that another is gone.
LAST_WORDS_S = 0.5

#: A worker ends its job itself at the deadline; without an answer so many seconds later, Ray kills the worker.
RAY_ANSWER_S = 0.2

#: A trial that does not end by itself is killed so long before its time is over: the evaluation begins on time.
KILL_BEFORE_S = 0.05

#: The loader hangs if a batch is so late: seconds at least and at most, a share of the trial's time, steps of the plan.
PATIENCE_S, PATIENCE_SHARE, PATIENCE_STEPS = (5.0, 60.0), 0.05, 20

#: A trainer hangs if it is silent for so many times the seconds of its start, a validation and two checkpoints.
SILENCE_FACTOR = 5

#: In runs shorter than IN_PROCESS_BELOW_S the process that trained a model evaluates it too, which saves 1 to 3 s, if
#: the trial is IN_PROCESS_FROM times as long as its start and the evaluation: trying the evaluation out must pay. In
#: longer runs another process evaluates, and SEPARATE_MARGIN_S more are kept for it: a host that has worked for long
#: starts a process slower (the same evaluations took 2.3 s after 90 s, and 2.8 after 300: docs/log.md).
IN_PROCESS_BELOW_S, IN_PROCESS_FROM, SEPARATE_MARGIN_S = 600.0, 3, 3.0

#: The time that a refusal asks for adds this share to the costs beside training, so many seconds at most: with that
#: time the run must not be refused again. (When 6.0 s were named, on two busy cores, the next start took 2 s more.)
REFUSAL_MARGIN, REFUSAL_MARGIN_S = 0.5, 5.0

#: The machine may be busier at the evaluation, and a process starts slower after minutes of work (see above). If the
#: machine became slower during the training, the trial ends earlier for it.
EVALUATION_MARGIN = 0.2

#: Relative safety on every predicted cost: the machine's own jitter between a two-second sample and a long run.
MARGIN = 0.02

#: Fixed costs are single measurements; they get a wider one.
FIXED_MARGIN = 0.25
