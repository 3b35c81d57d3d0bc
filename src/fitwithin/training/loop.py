"""One trial: train a candidate to its planned end or to its deadline, whichever is nearer, and leave its best model.

The loop in :func:`train` reads top to bottom: one step, note its loss, validate or write a checkpoint if that is due.
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

#: More steps than any trial has.
MAX_STEPS = 10**9


def train(
    job: TrainJob,
    device: Cpu | Cuda,
    feeder: PrefetchLoader,
    asked_at: float,
    emit: Emit,
    team: ProcessGroup = SINGLE_PROCESS,
    evaluator: Evaluator | None = None,
) -> TrainResult:
    """Train; go on from the folder's checkpoint if there is one; leave the best model in the folder.

    If this process will evaluate the model, the ``evaluator`` tries that out first. The processes of a ``team`` train
    together, step by step; the first one decides, validates and writes.

    Raises:
        OutOfMemory: the cap was reached; the checkpoint and the best model so far stay.
        LoaderTimeout: the loaders hang, and another process has time to go on from the checkpoint.
        TrainingError: the loss or a weight is no longer finite, whatever the rate.
    """
    if (finished := read_json(TrainResult, Path(job.folder) / OUTCOME)) is not None:
        return finished
    trainer = Trainer(job, device, feeder, asked_at, team, emit)
    trainer.resume()
    progress, learner = trainer.progress, trainer.learner
    schedule = progress.schedule
    feeder.loader_timeout_s = job.loader_timeout_s
    if evaluator is not None and job.evaluation is not None:
        trainer.estimate_evaluation(evaluator, job.evaluation)
    if ended := schedule.done:
        trainer.save_last_if_no_best()
    trainer.start_timer()
    while not ended:
        stage = schedule.stage
        with feeder.stream(
            TrainBatches,
            **learner.loader_args(stage.px),
            batch=job.share,
            first_step=schedule.step,
            steps=MAX_STEPS if schedule.open_ended else schedule.total,
            until_at=schedule.training_ends_at,
        ) as loaded:
            for x_bhwc, y_b in team.lockstep(loaded):
                loss = learner.step(x_bhwc, y_b, progress.peak_lr * schedule.lr_factor)
                device.limit_run_ahead()
                progress.take()
                trainer.read(loss)
                if due := trainer.observe():
                    trainer.pause_for(due)
                if trainer.nonfinite or schedule.done or schedule.stage is not stage:
                    break
            if stalled := team.any(feeder.stalled):
                trainer.on_loader_timeout()
            if schedule.done:
                trainer.pause_for(trainer.save_last_if_no_best)
        if trainer.nonfinite and not stalled:
            trainer.restore_checkpoint()
        ended = schedule.done
    result = trainer.finish()
    if evaluator is not None:
        evaluator.saved_dir = trainer.saved_dir
        feeder.settle()
    return result
