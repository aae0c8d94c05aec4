"""The training library's API: a program that loads where it left off, saves in time, and stops when told.

    from spot_training.train import Training

    training = Training({"model": model, "optimizer": optimizer}, total_steps=1000, save_every_steps=50)
    for step in training.steps():
        ...                             # one step, as before

`steps` loads the newest whole checkpoint and goes on from its step, saves when it is time, and, when SIGTERM or
SIGINT has come, saves once more and ends the process with exit code 143. After the last step it records that
the program is complete: started again, the loop ends at once.

A program with a loop of its own does the same in four calls, in the same places on every rank::

    training.load()                     # then training.step is the number of steps already done
    while training.step < 1000:
        ...
        training.step_done()            # counts; saves when it is time; ends the process when told to stop
    training.complete()

Finer still: `should_stop`, `save`, `stop`.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, NoReturn

from spot_training.train import report
from spot_training.train.account import Account
from spot_training.train.background import end_within
from spot_training.train.compression import check as check_compression
from spot_training.train.directory import Keep
from spot_training.train.environment import Settings
from spot_training.train.outcome import PassedOver, Save
from spot_training.train.ranks import find_ranks
from spot_training.train.report import TerminationLog, log
from spot_training.train.signals import EXIT_PREEMPTED, Preempted, StopSignals
from spot_training.train.snapshot import overlapped_in
from spot_training.train.state import check_parts, portable_extras
from spot_training.train.stopping import Agreement
from spot_training.train.store import Place, Store
from spot_training.train.telling import Teller

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from spot_training.train.background import Background
    from spot_training.train.outcome import Saved
    from spot_training.train.state import Files, Part

_DEFAULT_SAVE_SECONDS: Final = 600.0
_ASKED_EVERY: Final = 1.0
"""Seconds, while ranks wait for a save, after which they speak of what else has come."""


class Training:
    """A training program that can be interrupted at any time.

    `state` names what the program is made of: objects with ``state_dict`` and ``load_state_dict``, pairs (get, set), or
    `Files`; alike on all ranks, so rank 0 saves it. `per_rank` names what differs from rank to rank, such as a
    sampler. The random number generators of Python, NumPy and torch are saved without being named, and small
    facts in the dict `extras` (JSON: epoch, loss) go into checkpoints and the termination message. `passed_over`
    lists the checkpoints that `load` could not use; they are kept to be looked at.

    `total_steps` None is a program that calls `complete` itself. Saves come every `save_every_steps` steps and
    `save_every_seconds` seconds (else as the operator says, else, with neither, every ten minutes); the newest
    `keep` stay, and the first of each `keep_every_steps`. `compress` is ``"gzip"`` or, from Python 3.14 on, ``"zstd"``:
    for slow disks. `directory` is for runs outside the operator; the one that the operator mounts goes before it.

    With `background` a save only copies the state to host memory, for which there must be room, and is written
    while the program goes on; one at a time: the next waits for it. With several ranks it counts from the next step
    on at which all have written. A save that fails is told at one of the next steps. The last one is waited for.
    With `overlapped` what the optimizers in `state` own is copied while the next forward and backward pass run, and
    their next step waits for that: for programs that change parameters and moments in no other way
    between two steps (not through ``.data``, for one, which nothing can see).

    A model that is spread over the ranks (FSDP, DTensors), and its optimizer, are saved by all ranks, each its shards,
    and loaded by any number of ranks. `sharded` says so where no model or optimizer in `state` shows it.

    With several ranks, make it after ``init_process_group`` on all of them. Raises ValueError, TypeError and
    RuntimeError for arguments and surroundings that make no sense, CheckpointError where the directory is unusable.
    """

    def __init__(
        self,
        state: Mapping[str, Part | Files],
        *,
        total_steps: int | None = None,
        per_rank: Mapping[str, Part | Files] | None = None,
        directory: str | os.PathLike[str] | None = None,
        save_every_steps: int | None = None,
        save_every_seconds: float | None = None,
        keep: int = 2,
        keep_every_steps: int | None = None,
        compress: str | None = None,
        background: bool = False,
        overlapped: bool = False,
        sharded: bool | None = None,
    ) -> None:
        settings = Settings.read()
        self.total_steps = total_steps
        self.step = 0
        self.resumed_step = 0
        self.extras: dict[str, Any] = {}
        self.passed_over: list[PassedOver] = []
        self._every_steps = save_every_steps
        self._every_seconds = save_every_seconds or settings.interval
        if not self._every_seconds and not save_every_steps:
            self._every_seconds = _DEFAULT_SAVE_SECONDS
        self._last_save = time.monotonic()
        self._account = Account()
        self._background = background
        self._begun: tuple[Save, Background[Saved]] | None = None  # the save that is under way
        self._loaded = self._completed = False
        self._knows_step = False
        report.show_log()
        termination_log = TerminationLog(settings.termination_log)
        # From here on, what goes wrong is told to the operator.
        self._teller = Teller(termination_log, settings.local_rank, self._facts, self._optional_facts)
        _check_positive(total_steps=total_steps, keep=keep, keep_every_steps=keep_every_steps)
        _check_positive(save_every_steps=save_every_steps, save_every_seconds=save_every_seconds)
        place = Place(settings.directory(directory), settings.fence, settings.attempt, settings.resume_dir)
        common, own = check_parts(state, "state"), check_parts(per_rank or {}, "per_rank")
        self._signals = StopSignals()
        self._signals.install()
        self._ranks = find_ranks(settings.world_size)
        self._agreed = Agreement(self._ranks, self._signals, settings.grace)
        self._store = Store(
            place,
            self._ranks,
            common,
            own,
            Keep(keep, keep_every_steps),
            sharded,
            check_compression(compress),
            overlapped_in(common, background=background) if overlapped else None,
        )
        self.passed_over = self._store.passed_over

    @property
    def stopping(self) -> bool:
        """Whether a signal has come to this rank. Ranks may differ; to act on it together, use `should_stop`."""
        return self._agreed.told

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: all steps are done, or an earlier run of this program had completed."""
        if self._completed or (self.total_steps is not None and self.step >= self.total_steps):
            return True
        completed = self._store.completed
        return self.total_steps is None and completed is not None and completed["step"] == self.step

    def steps(self) -> Iterator[int]:
        """The steps that are left, as ``range(done, total_steps)`` counts them; loads first, completes last."""
        self.load()
        while not self.finished:
            yield self.step
            self.step_done()
        self.complete()

    def load(self) -> int:
        """Load the newest whole checkpoint into the state and return its step; 0 from scratch.

        Ends the process, as `stop` does but without a save, where it has been told to stop before that. A second
        call does nothing. Raises CheckpointError where there are checkpoints and none is whole: to begin anew, and
        to compute days again, must be someone's decision.
        """
        if self._loaded:
            return self.step
        self._loaded = True
        if self._store.completed is None and self.should_stop():
            self._leave_unbegun()  # a large checkpoint takes time to load
        began = time.monotonic()
        loaded = self._store.load()
        self._knows_step = True
        self._last_save = time.monotonic()
        if loaded is None:
            self._say("started from scratch (attempt %d)", self._store.attempt, event="started")
        else:
            self._account.note_loaded(loaded, self._last_save - began)
            self.step = self.resumed_step = loaded.step
            self.extras.update(loaded.extras)
            source = (
                "another job's checkpoint" if loaded.borrowed else f"checkpoint of attempt {loaded.attempt}"
            )
            self._say(
                "resumed from step %d (attempt %d, %s)",
                self.step,
                self._store.attempt,
                source,
                event="resumed",
            )
        if self.finished and self._store.completed:
            self.extras.update(self._store.completed.get("extras", {}))
        self._teller.tell(report.RUNNING)
        if not self.finished and self.should_stop():
            self._leave_unbegun()
        return self.step

    def step_done(self) -> None:
        """Count one step. Saves when it is time; when told to stop, saves and ends the process with 143."""
        if self.count_step():
            self.act()

    def count_step(self) -> bool:
        """Count one step, and say whether it is time to `act`; all ranks get the same answer."""
        self.step += 1
        due = self._consult()
        if self.total_steps is not None and self.step >= self.total_steps:
            return False  # the save comes with the completion
        if self._agreed.stopping or due or (self._every_steps and self.step % self._every_steps == 0):
            return True
        if self._teller.old:
            self._teller.tell(report.RUNNING)
        return False

    def act(self) -> None:
        """Save; when told to stop, end the process after that. All ranks, where `count_step` has said so."""
        if self._agreed.stopping:
            self.stop()
        self.save()

    def should_stop(self) -> bool:
        """Whether any rank has been told to stop. All ranks ask at the same point, and get the same answer."""
        self._consult()
        return self._agreed.stopping

    def save(self) -> Save:
        """Save the state as it is after `step` steps; all ranks at the same point.

        A save that fails is logged and told in the termination message, and the program goes on with what it
        had; `Save.wait` raises.
        """
        began = time.monotonic()
        self._settle()
        extras, save = portable_extras(self.extras), Save(self.step, self._settle)
        beside = self._background and not self._agreed.stopping
        self._begun = (save, self._store.begin_save(self.step, extras, copy=beside))
        self._account.stall_seconds = time.monotonic() - began
        if not beside:
            self._settle()
        self._last_save = time.monotonic()
        return save

    def stop(self) -> NoReturn:
        """Save, unless it is saved or the grace is too short, and end the process with exit code 143.

        All ranks at the same point. Not begun is a save that by the last one's measure cannot end within the
        grace, where this attempt has saved before: it would only put at risk what it cannot replace. A save that
        has not ended shortly before the grace has, on a disk that hangs, is left to itself.
        """
        self._consult()
        if self._begun:
            self._settle()
            self._consult()  # of the grace, less is left
        needed, left = self._account.save_seconds, self._agreed.left
        if self._account.own_step == self.step:
            self._say_stopping(f"step {self.step} is saved")
        elif needed is not None and left is not None and left < needed:
            self._say_stopping(f"no time to save step {self.step}")
        else:
            self._say_stopping("saving")
            self.save()
            self._settle()
        self._leave()

    def complete(self, **extras: Any) -> None:
        """Save the last step and record, durably, that the program came to its end.

        All ranks at the same point. `steps` calls it; call it again to add `extras` to what was recorded, such as
        the final accuracy (then each rank by itself, and rank 0's count).
        """
        self._settle()
        self.extras.update(extras)
        again, self._completed = self._completed, True
        if again:
            self._store.note_completed(self._completion())
        else:
            if self._account.own_step != self.step:
                self.save().wait()
            recorded = self._store.completed
            if extras or recorded is None or recorded["step"] != self.step:
                self._store.complete(self._completion())
            self._say("completed at step %d", self.step, event="completed")
        self._teller.tell(report.COMPLETED)
        self._wait_for_pruning()
        if not again:
            self._ranks.part()
            self._signals.restore()

    def close(self) -> None:
        """Give signals and the exception hook back; for programs that go on to something else."""
        self._wait_for_pruning()
        self._signals.restore()
        self._teller.close()

    def _leave_unbegun(self) -> NoReturn:
        self._say_stopping("no step has been done")
        self._leave()

    def _leave(self) -> NoReturn:
        self._teller.tell(report.PREEMPTED)
        if (left := self._agreed.seconds_now()) is not None:
            end_within(left, EXIT_PREEMPTED)
        self._ranks.part()
        raise Preempted(EXIT_PREEMPTED)

    def _consult(self) -> bool:
        """Exchange with all ranks who was told to stop, and return whether it is time to save.

        One all-reduce at each step: every rank leaves this step knowing the same.
        """
        due = self._every_seconds is not None and time.monotonic() - self._last_save >= self._every_seconds
        busy = self._begun is not None and self._begun[1].busy
        due, busy = self._agreed.exchange(due=due, busy=busy)
        if self._begun and not busy:
            self._advance(time.monotonic())
        return due

    def _settle(self) -> None:
        """Wait for the save that is under way; where told to stop, no longer than the grace allows."""
        while self._begun:
            began = time.monotonic()
            save, begun = self._begun
            begun.wait(_ASKED_EVERY)
            _, busy = self._agreed.exchange(due=False, busy=begun.busy)
            if not busy:
                self._advance(began)
            elif self._agreed.over:
                self._begun = None
                self._say_stopping(f"the save of step {save.step} has not ended in time")
                self._leave()
            else:
                self._account.stall_seconds += time.monotonic() - began

    def _advance(self, began: float) -> None:
        """Bring the save that is under way one part on; `began` is when the program began to wait for it."""
        if not self._begun:
            return
        save, begun = self._begun
        self._begun = None  # also where it raises: what has failed is not waited for again
        ended = begun.advance()
        self._account.stall_seconds += time.monotonic() - began
        if ended:
            self._note(save, ended[0])
        else:
            self._begun = (save, begun)

    def _note(self, save: Save, saved: Saved) -> None:
        """Take down how a save has ended, and tell it."""
        save.saved = saved
        self._account.stall_seconds += self._store.waited()
        self._account.note_saved(saved)
        if saved.problem is None:
            words = "saved step %d in %.2f s, training stood still for %.2f s"
            self._say(words, saved.step, saved.seconds, self._account.stall_seconds, event="saved")
        self._teller.tell(report.RUNNING)
        if saved.problem is None:
            self._store.prune()  # told first: removing may take its time, and the program be killed meanwhile
            if not self._background and not self._completed:
                self._account.stall_seconds += self._wait_for_pruning()

    def _wait_for_pruning(self) -> float:
        """The seconds that were waited, until this rank is told to stop at the longest."""
        return self._store.wait_for_pruning(lambda: not self.stopping)

    def _completion(self) -> dict[str, Any]:
        extras = portable_extras(self.extras)
        return {"step": self.step, "totalSteps": self.total_steps, "time": time.time(), "extras": extras}

    def _say_stopping(self, what: str) -> None:
        self._say("%s", self._agreed.in_words(what), event="stopping")

    def _say(self, message: str, *arguments: object, event: str) -> None:
        if self._ranks.rank == 0:
            log.info(
                message, *arguments, extra={"event": event, "step": self.step, "attempt": self._store.attempt}
            )

    def _facts(self) -> dict[str, Any]:
        return {
            "step": self.step if self._knows_step else None,
            "totalSteps": self.total_steps,
            **self._account.facts(),
            "resumedStep": self.resumed_step if self._knows_step else None,
            **self._account.troubles(),
        }

    def _optional_facts(self) -> dict[str, Any]:
        return {"extras": self.extras, "passedOver": [asdict(item) for item in self.passed_over]}


def _check_positive(**arguments: float | None) -> None:
    for name, value in arguments.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name}={value!r} must be above 0")
