"""One turn: train a candidate to its planned end or to its deadline, whichever is nearer, and leave its best model.

The loop reads top to bottom in :func:`advance`: validate, checkpoint, one step, take note.
"""

from __future__ import annotations

from pathlib import Path

from fitwithin.data.batches import TrainBatches
from fitwithin.data.prefetch import PrefetchLoader
from fitwithin.engine.cuda import Cuda
from fitwithin.engine.device import Cpu
from fitwithin.engine.jobs import TrainJob
from fitwithin.engine.results import OUTCOME, TrainResult
from fitwithin.files import read_json
from fitwithin.training.distributed import SINGLE_PROCESS, ProcessGroup
from fitwithin.training.evaluation import Evaluator
from fitwithin.training.trainer import Emit, Trainer

#: More steps than any turn has.
ENDLESS = 10**9


def advance(
    job: TrainJob,
    device: Cpu | Cuda,
    feeder: PrefetchLoader,
    asked_at: float,
    emit: Emit,
    team: ProcessGroup = SINGLE_PROCESS,
    evaluator: Evaluator | None = None,
) -> TrainResult:
    """Train; go on from the folder's checkpoint if there is one; leave the best model in the folder.

    Where the process stays for its model's evaluation, the ``evaluator`` tries that out first. The processes of a
    ``team`` train together, step by step; the first one decides, validates and writes.

    Raises:
        OutOfMemory: the cap was reached; checkpoint and best model so far stay.
        Hanging: the loaders make no more batches, and there is time to go on from the checkpoint in another process.
        TrainingError: the loss or a weight is no longer finite, whatever the rate.
    """
    if (finished := read_json(TrainResult, Path(job.folder) / OUTCOME)) is not None:
        return finished
    turn = Trainer(job, device, feeder, asked_at, team, emit)
    turn.go_on()
    schedule, learner, feeder.loader_timeout_s = turn.schedule, turn.learner, job.loader_timeout_s
    if evaluator is not None and job.evaluation is not None:
        turn.rehearse(evaluator, job.evaluation)
    if ended := schedule.done:
        turn.keep()
    turn.stepping()
    while not ended:
        stage = schedule.stage
        with feeder.stream(
            TrainBatches,
            **learner.fed_with(stage.px),
            batch=job.share,
            first_step=schedule.step,
            steps=ENDLESS if schedule.open_ended else schedule.total,
            until_at=schedule.training_ends_at,
        ) as loaded:
            for x_bhwc, y_b in team.in_step(loaded):
                loss = learner.step(x_bhwc, y_b, turn.peak_lr * schedule.lr_factor)
                device.throttle()
                schedule.step += 1
                turn.read(loss)
                if due := turn.observe():
                    turn.aside(due)
                if turn.spoiled or schedule.done or schedule.stage is not stage:
                    break
            if stalled := team.any(feeder.stalled):
                turn.starve()
            if schedule.done:
                turn.aside(turn.keep)
        if turn.spoiled and not stalled:
            turn.rescue()
        ended = schedule.done
    if evaluator is not None:
        evaluator.holds = turn.holds
    return turn.finish()
