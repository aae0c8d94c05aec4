"""Saving and loading by all ranks together: who writes and reads which file, and what all then agree on.

Rank 0 writes what all ranks have alike; each rank writes what it has of its own. Only when every rank has
brought its files to the disk does rank 0 write the manifest. A rank that fails says so to the others, so that
nobody waits and no manifest is written. Loading: rank 0 proposes a checkpoint, the best first; the ranks
verify its files, each its share; unless all find them whole, all pass it over and go on to the next.
"""

from __future__ import annotations

import contextlib
import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from spot_training.train import filed, files, sharding, state
from spot_training.train.background import Background
from spot_training.train.directory import CheckpointDirectory, Keep
from spot_training.train.fence import attempt_number
from spot_training.train.filed import Packing
from spot_training.train.files import DamagedError, Written
from spot_training.train.manifest import Entry, Manifest, read_manifest
from spot_training.train.named import name_parts, spread_parts
from spot_training.train.opened import FILES, Flaw, Opened, open_share, own_files
from spot_training.train.outcome import Loaded, PassedOver, Saved
from spot_training.train.patience import patiently
from spot_training.train.problem import CheckpointError, Problem, in_words
from spot_training.train.ranks import PeerLostError
from spot_training.train.report import log
from spot_training.train.sharding import Sharding
from spot_training.train.snapshot import ChangedMeanwhileError, HostCopies

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from spot_training.train.background import Steps
    from spot_training.train.ranks import Ranks
    from spot_training.train.state import Files, Part

T = TypeVar("T")
_Tried = tuple[list[T], Problem | None, Exception | None]

_ASKED_EVERY: Final = 0.5
"""Seconds."""


@dataclass(frozen=True)
class Place:
    """Where checkpoints are, and as which attempt: what `CheckpointDirectory` takes."""

    root: Path
    fence: str | None
    attempt: int | None
    resume: Path | None


class Store:
    """Saves and loads the parts of one program. All methods but `note_completed` are called by all ranks together."""

    def __init__(
        self,
        place: Place,
        ranks: Ranks,
        state_parts: Mapping[str, Part | Files],
        per_rank: Mapping[str, Part | Files],
        keep: Keep,
        sharded: bool | None = None,
        compress: str | None = None,
        overlapped: Mapping[str, Any] | None = None,
    ) -> None:
        self._ranks = ranks
        parts, self._files = filed.split(state_parts)
        self._parts = name_parts(parts)
        self._plain = parts
        self._per_rank, self._own_files = filed.split(per_rank)
        # Of a state that is spread over the ranks all must take their share together; any other, rank 0 takes alone.
        self._sharded = bool(spread_parts(parts)) if sharded is None else sharded
        self._sharding = Sharding(ranks, compress)
        self._compress = compress
        self._keep = keep
        self._current = True  # as far as it is known: no newer attempt has started
        self._pruning: Background[None] | None = None
        self._copies = HostCopies(overlapped or {})
        self.passed_over: list[PassedOver] = []
        self._directory: CheckpointDirectory | None = None  # of rank 0 only

        def begin() -> tuple[str, dict[str, Any] | None]:
            make = functools.partial(CheckpointDirectory, place.root, place.fence, place.resume, time.time())
            self._directory = patiently(make)
            return self._directory.fence, self._directory.completed

        trouble = f"cannot use the checkpoint directory {place.root}"
        self.fence, self.completed = _by_first(ranks, begin if ranks.rank == 0 else None, trouble)
        self.attempt = attempt_number(self.fence) if place.attempt is None else place.attempt

    def load(self) -> Loaded | None:
        """Load the best whole checkpoint into all parts. None: there is none, and there was none to pass over.

        Raises CheckpointError where there are checkpoints and none of them is whole, KeyError where the program
        has parts that the checkpoint does not know.
        """
        self._capture()  # so that a state that could not be saved is known now, not at the first save
        candidates = self._ask(lambda directory: directory.candidates(), "cannot list the checkpoints")
        for entry in candidates:
            manifest, flaw = self._ask(functools.partial(_manifest_of, entry), "cannot read a manifest")
            if manifest:
                with contextlib.ExitStack() as stack:
                    opened, own_flaw = open_share(entry, manifest, self._ranks, stack)
                    flaws = [said for said in self._ranks.gather(own_flaw) if said]
                    flaw = next((said for said in flaws if said.damaged), next(iter(flaws), None))
                    if not flaw:
                        self._restore(manifest, opened)
                        return self._loaded(entry, manifest)
            self._pass_over(entry, flaw or Flaw("is not whole"))
        trouble = self._ask(lambda directory: directory.trouble, "cannot list the checkpoints")
        if candidates or trouble:
            reasons = [
                *([trouble] if trouble else []),
                *(f"{item.checkpoint} {item.reason}" for item in self.passed_over),
            ]
            raise CheckpointError(
                f"of the {len(candidates)} checkpoints that this attempt may load none is whole: {'; '.join(reasons)}. "
                "They are kept as they are; to start from scratch, empty the checkpoint directory"
            )
        return None

    def begin_save(self, step: int, extras: dict[str, Any], *, copy: bool = True) -> Background[Saved]:
        """Begin to save all parts as the checkpoint of `step`; one at a time.

        With `copy` they are copied to host memory first, and the program may go on at once; else it waits, and its disk
        is still not what holds it. A disk that refuses is told in the result, on all ranks. What the program's own
        parts raise comes from here, or from the result's `advance` and `finish`, and PeerLostError on the other ranks.
        """
        return Background(self._save(step, extras, copy=copy), alone=self._ranks.size == 1)

    def waited(self) -> float:
        """The seconds for which an optimizer's step has waited since the last save in the background was begun."""
        return self._copies.waited()

    def _save(self, step: int, extras: dict[str, Any], *, copy: bool) -> Steps[Saved]:
        began, at = time.monotonic(), time.time()
        manifest: Manifest | None = None
        problem: Problem | None = None
        held: list[Packing] = []
        try:
            copies = self._copies if copy else None
            # Beside the program, several ranks would need one more of its steps to hear of a directory made later.
            made = self._make_directory(step, None) if copy and self._ranks.size > 1 else None
            place = _agreed(self._ranks, made) if made else None
            contents, failure = self._contents(held, copy=copy)
            taken = time.monotonic() - began
            if not place:
                place = _agreed(self._ranks, (yield functools.partial(self._make_directory, step, copies)))
            path, edition = place
            work = functools.partial(_write_files, path, contents, self._compress, copies)
            stored, seconds = self._gather_shares((yield work), failure, taken)
            size = self._ranks.size
            manifest = Manifest(self.fence, self.attempt, step, at, size, extras, stored, edition)
        except CheckpointError as error:
            problem, seconds = Problem.of(error), time.monotonic() - began
        finally:
            for packing in held:
                packing.close()
        ended = yield functools.partial(self._conclude, step, manifest, problem)
        problem, last_seconds, at = self._ranks.from_first((*ended, at))
        return Saved(step, seconds + last_seconds, at, problem)

    def _conclude(
        self, step: int, manifest: Manifest | None, problem: Problem | None
    ) -> tuple[Problem | None, float]:
        """Rank 0's last part: commit, or remove what the failed save has left."""
        began = time.monotonic()
        if self._directory:
            if manifest:
                try:
                    self._directory.commit(manifest)
                except OSError as error:
                    problem = Problem.of(error, "cannot write its manifest: ")
            if problem:
                with contextlib.suppress(
                    OSError
                ):  # of a disk that is gone; the next save of this step tries again
                    self._directory.discard(step)
        return problem, time.monotonic() - began

    def prune(self) -> None:
        """Begin to remove old checkpoints, in a thread of rank 0's. After a save that has been told; the next waits."""
        if self._directory:
            steps = _one_step(functools.partial(self._prune, self._directory))
            self._pruning = Background(steps, alone=True, name="prune")

    def wait_for_pruning(self, patient: Callable[[], bool]) -> float:
        """Wait until that is done, as long as `patient` says so, and return the seconds."""
        began = time.monotonic()
        while self._pruning and self._pruning.busy and patient():
            self._pruning.wait(_ASKED_EVERY)
        return time.monotonic() - began

    def _make_directory(self, step: int, copies: HostCopies | None) -> _Tried[tuple[Path, int]]:
        """Rank 0's first part. `copies`: to be finished before; for them the program waits, and not for the disk."""
        if copies:
            copies.finish()
        if self._pruning:
            self._pruning.finish()
        prepare = functools.partial(self._directory.prepare, step) if self._directory else None
        return _tried(prepare, "cannot make its directory")

    def complete(self, record: dict[str, Any]) -> None:
        """Record that the program came to its end. Raises CheckpointError on all ranks where that fails."""
        self._ask(lambda directory: directory.complete(record), "cannot record the completion")

    def note_completed(self, record: dict[str, Any]) -> None:
        """Write that record again, with more in it; by any rank, and only rank 0's counts. Raises OSError."""
        if self._directory:
            self._directory.complete(record)

    def _ask(self, work: Callable[[CheckpointDirectory], T], trouble: str) -> T:
        directory = self._directory
        return _by_first(self._ranks, (lambda: work(directory)) if directory else None, trouble)

    def _capture(self) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """What this rank writes: the common state, if it is rank 0, and its own."""
        own = {"state": state.capture(self._per_rank, "per_rank"), "random": state.random_states()}
        common = None
        if self._ranks.rank == 0 or self._sharded:
            common = state.capture(self._parts, "state")
        sharding.refuse_spread({"per_rank": own["state"], **({} if self._sharded else {"state": common})})
        return common, own

    def _gather_shares(
        self,
        ended: tuple[dict[str, Written], Exception | None, float],
        failure: Exception | None,
        taken: float,
    ) -> tuple[dict[str, Written], float]:
        """Every rank's files, written side by side, and the seconds that the slowest rank took for it.

        Of this rank: how its writing has `ended`, what went wrong before, and the seconds for that. Raises as
        `begin_save` says, CheckpointError for a disk's refusal.
        """
        written, refusal, seconds = ended
        # What a part of the program's own could not write, it did not write to our volume.
        told = Problem(in_words(failure)) if failure else Problem.of(refusal) if refusal else None
        failure = failure or refusal
        refused = isinstance(failure, (OSError, ChangedMeanwhileError))
        shares = self._ranks.gather((written, told, refused, taken + seconds))
        if failure and not refused:
            raise failure
        for rank, (_, problem, by_disk, _) in enumerate(shares):
            if problem and not by_disk:
                raise PeerLostError(f"rank {rank} could not take its state: {problem.words}")
            if problem:
                raise problem.after(f"rank {rank} cannot write: ").error() from failure
        files_of_all = {name: file for share, *_ in shares for name, file in share.items()}
        return files_of_all, max(share[3] for share in shares)

    def _contents(self, held: list[Packing], *, copy: bool) -> tuple[dict[str, Any], Exception | None]:
        """What this rank writes, by file name, and what went wrong, of which the peers must hear first.

        `held` gets what is to be closed when all is written.
        """
        contents: dict[str, Any] = {}
        try:
            common, own = self._capture()
            contents[f"rank-{self._ranks.rank:05d}{state.suffix(self._compress)}"] = own
            if self._sharded and common is not None:
                common, spread = sharding.separate(common)
                self._sharding.prepare(spread)
            if common is not None and self._ranks.rank == 0:
                contents[f"state{state.suffix(self._compress)}"] = common
        except Exception as error:
            if self._sharded:
                self._sharding.give_up()
            return {}, error
        try:
            if self._sharded:
                contents.update(self._sharding.share())
            contents = self._copies.take(contents) if copy else contents
            common_files = self._files if self._ranks.rank == 0 else {}
            for stem, parts, argument in (
                (FILES, common_files, "state"),
                (own_files(self._ranks.rank), self._own_files, "per_rank"),
            ):
                if parts:
                    held.append(Packing(parts, argument))
                    contents[stem + filed.suffix(self._compress)] = held[-1].write
            return contents, None
        except Exception as error:
            return {}, error

    def _prune(self, directory: CheckpointDirectory) -> None:
        try:
            current = directory.prune(self._keep)
        except OSError as error:
            log.warning("could not remove old checkpoints: %s", error, extra={"event": "prune-failed"})
            return
        if self._current and not current:
            log.warning(
                "a newer attempt has started: what this one saves will not be used", extra={"event": "fenced"}
            )
        self._current = current

    def _restore(self, manifest: Manifest, opened: Opened) -> None:
        common, parts = opened.common(), self._parts
        if self._sharded or opened.is_sharded:
            parts, common = sharding.load(self._plain, common, opened.spread(), opened.shard)
        state.restore(parts, common)
        filed.restore(self._files, opened.files())
        own, mine = opened.own(), [*self._per_rank, *self._own_files]
        if own:
            state.restore(self._per_rank, own["state"])
            filed.restore(self._own_files, opened.files_of_own())
            state.restore_random(own["random"])
        elif mine:
            raise CheckpointError(
                f"the checkpoint was saved by {manifest.world_size} ranks and there are {self._ranks.size} now: the "
                f"state that each rank has of its own ({', '.join(mine)}) cannot be shared out anew"
            )
        if manifest.world_size != self._ranks.size and self._ranks.rank == 0:
            log.warning(
                "saved by %d ranks, loaded by %d: random numbers will differ from an uninterrupted run's",
                manifest.world_size,
                self._ranks.size,
                extra={"event": "world-size-changed"},
            )

    def _loaded(self, entry: Entry, manifest: Manifest) -> Loaded:
        borrowed = self._ask(
            lambda directory: directory.is_borrowed(entry), "cannot tell whose checkpoint it is"
        )
        return Loaded(manifest.step, manifest.time, manifest.attempt, borrowed, manifest.extras)

    def _pass_over(self, entry: Entry, flaw: Flaw) -> None:
        if self._directory:
            self._directory.pass_over(entry, damaged=flaw.damaged)
        self.passed_over.append(PassedOver(entry.name, flaw.words))
        if self._ranks.rank == 0:
            facts = {"event": "passed-over", "checkpoint": entry.name, "reason": flaw.words}
            log.warning("passed over %s: %s", entry.name, flaw.words, extra=facts)


def _by_first(ranks: Ranks, work: Callable[[], T] | None, trouble: str) -> T:
    """Let rank 0 do something (others give None); all get its result, or all raise CheckpointError."""
    return _agreed(ranks, _tried(work, trouble))


def _tried(work: Callable[[], T] | None, trouble: str) -> _Tried[T]:
    """The result, if there is work, or what was wrong and the exception that said so."""
    try:
        return [work()] if work else [], None, None
    except (OSError, DamagedError) as error:
        return [], Problem.of(error, f"{trouble}: "), error


def _agreed(ranks: Ranks, tried: _Tried[T]) -> T:
    """What rank 0 has tried, on all ranks. Raises CheckpointError on all where that failed."""
    results, problem = ranks.from_first(tried[:2])
    if problem:
        raise problem.error() from tried[2]
    return results[0]


def _write_files(
    path: Path, contents: Mapping[str, Any], compress: str | None, copies: HostCopies | None
) -> tuple[dict[str, Written], Exception | None, float]:
    """Write this rank's files: what was written, what went wrong, and the seconds that it took.

    `copies`: of which the contents are, and which may still have to be finished.
    """
    began = time.monotonic()
    written: dict[str, Written] = {}
    failure: Exception | None = None
    try:
        if copies:
            copies.finish()
        for name, content in contents.items():
            written[name] = files.write_durably(
                path / name, functools.partial(state.write, content, compress=compress)
            )
        if copies:
            copies.check()
    except Exception as error:  # as above
        failure = error
    return written, failure, time.monotonic() - began


def _one_step(work: Callable[[], T]) -> Steps[T]:
    result: T = yield work
    return result


def _manifest_of(entry: Entry, _: CheckpointDirectory) -> tuple[Manifest | None, Flaw | None]:
    try:
        return read_manifest(entry), None
    except (DamagedError, OSError) as error:
        return None, Flaw.of(error)
