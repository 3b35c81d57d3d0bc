"""What a trial does between its steps, on a device: validate, save the best model, write checkpoints, resume.

:class:`~fitwithin.training.progress.TrialProgress` decides what is due, and keeps the results.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from fitwithin.data.framing import Frame
from fitwithin.data.prefetch import PrefetchLoader
from fitwithin.engine.cuda import Cuda
from fitwithin.engine.device import Cpu
from fitwithin.engine.jobs import EvaluateJob, TrainJob
from fitwithin.engine.margins import REHEARSAL_SHARE
from fitwithin.engine.results import CHECKPOINT, OUTCOME, SALVAGE, Progress, TrainResult
from fitwithin.errors import LoaderTimeout
from fitwithin.files import to_json, write_text_atomic
from fitwithin.training import model as models
from fitwithin.training.distributed import ProcessGroup
from fitwithin.training.evaluation import Evaluator, count_correct, eval_batch
from fitwithin.training.learner import Learner, read_checkpoint, write_checkpoint
from fitwithin.training.progress import CheckpointState, Due, TrialProgress

#: Another process goes on only if RESTARTS times the seconds of its start are left.
RESTARTS = 3

#: Takes a message about progress.
Emit = Callable[[Progress], None]


class Trainer:
    """Trains one candidate.

    Args:
        asked_at: when the process was asked for.
        team: the processes that train together; the first one decides, validates and writes.
        emit: is called with a message about progress.
    """

    def __init__(
        self, job: TrainJob, device: Cpu | Cuda, feeder: PrefetchLoader, asked_at: float, team: ProcessGroup, emit: Emit
    ) -> None:
        self.job = job
        self.device = device
        self.feeder = feeder
        self.team = team
        self.emit = emit
        self.folder = Path(job.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.learner = Learner(
            job.setting, job.candidate, device, cuda_graph=job.cuda_graph, accum_steps=job.accum_steps, team=team
        )
        self.progress = TrialProgress(
            job,
            n_train=len(feeder.pack.indices("train")),
            n_val=len(feeder.pack.indices("val")),
            began_at=asked_at,
            now=time.monotonic(),
        )
        #: Whether a loss or a weight is not finite.
        self.nonfinite = False
        self._losses = LossMeter(device, self.progress.reading_s)
        self._stepping_from = 0.0
        #: The step after which the model on disk was written; -1 where none has the learner's weights.
        self._model_step = -1
        self._settled = False

    def resume(self) -> None:
        """Go on from the checkpoint of an interrupted process; else load the job's first weights, if it has any."""
        saved = read_checkpoint(self.folder / CHECKPOINT)
        if saved is None:
            models.adopt(self.learner.net, self.job.init_from)
            return
        self.learner.load_state(saved["learner"])
        self.progress.resume(CheckpointState(**saved["facts"]))

    def restore_checkpoint(self) -> None:
        """Go back to the last checkpoint, whose weights are finite, and on at a lower rate.

        Raises:
            TrainingError: there is none, or lower rates did not help.
        """
        saved = read_checkpoint(self.folder / CHECKPOINT)
        self.progress.restart(None if saved is None else CheckpointState(**saved["facts"]))
        assert saved is not None
        self.nonfinite = False
        self._model_step = -1
        self._losses.clear()
        self.learner.load_state(saved["learner"])
        self.observe()
        if self.progress.schedule.done:
            self.save_last_if_no_best()

    def estimate_evaluation(self, evaluator: Evaluator, evaluation: EvaluateJob) -> None:
        """Try out the evaluation by this process: the trial ends in time for it."""
        most_s = REHEARSAL_SHARE * (self.job.until_at - time.monotonic())
        self.progress.expect_evaluation(evaluator.estimate_time(self.learner, evaluation, most_s))

    @property
    def saved_dir(self) -> str:
        """The folder of the saved model, if the learner still has that model's weights; else nothing."""
        return str(self.folder) if self._model_step == self.progress.schedule.step else ""

    def observe(self) -> Callable[[], None] | None:
        """Move the schedule's end to where the time lasts; what is due before the next step, None if nothing is. In a
        team the first process decides."""
        found = self.progress.observe(time.monotonic())
        due, self.nonfinite = self.team.sync_schedule(self.progress.schedule, found, self.nonfinite)
        return {Due.VALIDATION: self.validate, Due.CHECKPOINT: self.checkpoint}.get(Due(due))

    def start_timer(self) -> None:
        """Count time as that of steps from now on."""
        self._stepping_from = time.monotonic()

    def pause_for(self, other: Callable[[], None]) -> None:
        """Do something other than steps, once the device has finished these; not if a weight is not finite."""
        self.device.synchronize()
        self.progress.training_s += time.monotonic() - self._stepping_from
        self.nonfinite = self.team.any(self.nonfinite or not self.learner.finite())
        self.progress.peak_bytes = self.team.max(self.device.peak_bytes())
        if not self.nonfinite:
            other()
        self.progress.schedule.pause()
        self.start_timer()

    def on_loader_timeout(self) -> None:
        """No more batches will come: let another process go on, or end with what there is.

        Raises:
            LoaderTimeout: there is time for another process.
        """
        schedule = self.progress.schedule
        again_at = time.monotonic() + RESTARTS * (self.progress.startup_s + self.job.save_s)
        if self.team.broadcast([again_at < schedule.training_ends_at])[0]:
            self.pause_for(self.checkpoint)
            raise LoaderTimeout(f"no batch came within {self.job.loader_timeout_s:.0f} s after step {schedule.step}")
        schedule.stop()

    def read(self, loss: torch.Tensor) -> None:
        """Keep the loss of a step; about once a second, and after the last step, note and emit the losses' mean."""
        schedule = self.progress.schedule
        for step, mean in self._losses.read(schedule.step, loss, done=schedule.done):
            if not math.isfinite(mean):
                self.nonfinite = True
                return
            self._update_peak()
            self.emit(self.progress.record_loss(step, mean, time.monotonic()))
            if not self.job.frozen:
                self.device.share_cores()
            if not self._settled and step >= 3:
                self.device.update_limit()
                self._settled = True

    def validate(self) -> None:
        """Validate at the training size, if there is time; save the model if it is the best so far."""
        progress = self.progress
        begun_at = time.monotonic()
        if not self.team.broadcast([progress.can_validate(begun_at)])[0]:
            return
        self.learner.release()  # in all processes, so that they record the step anew side by side
        if not self.team.is_main:
            return
        self.device.empty_cache()
        correct = count_correct(
            self.learner,
            self.feeder,
            px=self.job.candidate.train_px,
            frame=Frame.of(self.job.setting.recipe),
            batch=eval_batch(self.job.share // self.job.accum_steps),
            until_at=progress.validation_ends_at,
        )
        if correct is None:
            return
        self.device.empty_cache()
        # The next step is recorded anew, if there is one.
        if progress.validated(correct, time.monotonic() - begun_at, self.learner.capture_s):
            self.save_model()
        self._write_result(SALVAGE)

    def try_average(self) -> None:
        """Validate the mean of the first and the last weights; keep it if it is as good as the best so far.

        (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022.)
        """
        if not self.progress.can_validate(time.monotonic()):
            return
        models.average(self.learner.net, self.job.init_from)
        self._model_step = -1  # the learner no longer has the weights of the saved model
        validated = len(self.progress.validations)
        self.validate()
        self.progress.averaged = len(self.progress.validations) > validated and self._model_step >= 0

    def save_model(self) -> None:
        """Write the model as it is, with its card."""
        if not self.team.is_main:
            return
        card = models.Card(
            model=self.job.candidate.model,
            classes=self.feeder.pack.classes,
            train_px=self.job.candidate.train_px,
            precision=self.job.candidate.precision,
            layout=self.job.candidate.layout,
            frame=Frame.of(self.job.setting.recipe),
            arguments=self.learner.arguments,
            mean=self.learner.mean,
            std=self.learner.std,
        )
        begun_at = time.monotonic()
        models.save(self.learner.net, card, self.folder)
        self._model_step = self.progress.schedule.step
        self.progress.model_saved(time.monotonic() - begun_at)

    def save_last_if_no_best(self) -> None:
        """Write the model as it is, unless a validation has chosen one."""
        if self.progress.best is None:
            self.save_model()

    def checkpoint(self) -> None:
        """Write the checkpoint; and the model as it is, while no validation has chosen one: there always is a model."""
        begun_at = time.monotonic()
        self.save_last_if_no_best()
        write_checkpoint(self.folder / CHECKPOINT, self.learner, dict(vars(self.progress.state(time.monotonic()))))
        self._write_result(SALVAGE)
        self.progress.checkpoint_saved(begun_at, time.monotonic())

    def finish(self) -> TrainResult:
        """The result, written where a resumed run looks for it."""
        if self.job.averages:
            self.pause_for(self.try_average)
        return self._write_result(OUTCOME, finished=True)

    def _write_result(self, name: str, *, finished: bool = False) -> TrainResult:
        self._update_peak()
        self.progress.cpu_taken = self.device.cpu_taken()
        result = self.progress.result(finished=finished)
        if self.team.is_main:
            write_text_atomic(self.folder / name, to_json(result), fsync=True)
        return result

    def _update_peak(self) -> None:
        self.progress.peak_bytes = max(self.progress.peak_bytes, self.device.peak_bytes())


class LossMeter:
    """Keeps the loss of every step on the device and gives means of them, at most one every ``every_s`` seconds."""

    def __init__(self, device: Cpu | Cuda, every_s: float) -> None:
        self._device = device
        self._every_s = every_s
        self._read_at = time.monotonic()
        self._unread: list[torch.Tensor] = []
        #: The step of the reading under way, and what gives the mean of the losses up to it, or None for now.
        self._reading: tuple[int, Callable[[], float | None]] | None = None

    def clear(self) -> None:
        """Forget what was not read yet."""
        self._unread.clear()
        self._reading = None

    def read(self, step: int, loss: torch.Tensor, *, done: bool) -> Iterator[tuple[int, float]]:
        """Keep the loss of that step; the means that have become known, each with the step it reaches to.

        It waits for the device only if the steps are ``done``: then nothing stays unread.
        """
        self._unread.append(loss)
        for _ in range(2 if done else 1):  # a reading that was under way leaves losses for a second one
            if self._reading is None and self._unread and (done or time.monotonic() - self._read_at >= self._every_s):
                self._reading = step, self._device.read_async(torch.stack(self._unread).mean())
                self._unread.clear()
                self._read_at = time.monotonic()
            if done:
                self._device.synchronize()
            if self._reading is not None and (mean := self._reading[1]()) is not None:
                reached, self._reading = self._reading[0], None
                yield reached, mean
