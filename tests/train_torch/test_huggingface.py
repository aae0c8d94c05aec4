"""The Hugging Face Trainer beside other callbacks, and with saves of its own."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from spot_training.train.huggingface import Preemptible

STEPS, IN_AN_EPOCH = 12, 4


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPOT_CHECKPOINT_DIR", "SPOT_FENCE", "SPOT_ATTEMPT", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


class Model(nn.Module):  # type: ignore[misc,unused-ignore]
    """Learns to add."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 1)

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = self.inner(inputs)
        return {"loss": nn.functional.mse_loss(outputs, labels), "logits": outputs}


class ToldToStop(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Notes each batch of an evaluation, by its step; sends SIGTERM in the second after `step`."""

    def __init__(self, step: int) -> None:
        self._step = step
        self.evaluated: list[int] = []

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.evaluated.append(state.global_step)
        if self.evaluated.count(self._step) == 2 and state.global_step == self._step:
            os.kill(os.getpid(), signal.SIGTERM)


class At(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Does something when the Trainer calls `point` after so many steps."""

    def __init__(self, point: str, step: int, do: Callable[[Any, Any], None]) -> None:
        def called(args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step:
                do(args, control)

        setattr(self, point, called)


Run = Callable[..., Preemptible]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made: list[Preemptible] = []

    def run(*before: TrainerCallback, after: TrainerCallback | None = None, **options: Any) -> Preemptible:
        every = {"save_every_steps": options.pop("ours", 1000), **options.pop("saves", {})}
        settings = TrainingArguments(
            output_dir=str(tmp_path / "output"),
            **{
                "num_train_epochs": STEPS // IN_AN_EPOCH,
                "save_strategy": "no",
                "logging_steps": 1,
                **options,
            },
            per_device_train_batch_size=2,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        torch.manual_seed(1)
        inputs = torch.randn(2 * IN_AN_EPOCH, 3)
        data = [{"inputs": row, "labels": row.sum(0, keepdim=True)} for row in inputs]
        preemptible = Preemptible(directory=tmp_path / "checkpoints", scratch=tmp_path, **every)
        made.append(preemptible)
        callbacks = [*before, preemptible, *([after] if after else [])]
        trainer = Trainer(Model(), settings, train_dataset=data, eval_dataset=data, callbacks=callbacks)
        trainer.train(resume_from_checkpoint=preemptible.checkpoint())
        return preemptible

    yield run
    for each in made:
        each.training.close()


def _loaded(tmp_path: Path) -> tuple[int, Path]:
    """Step and files of what an attempt after this one would go on from."""
    again = Preemptible(directory=tmp_path / "checkpoints", scratch=tmp_path)
    path = again.checkpoint()
    again.training.close()
    assert path is not None
    return again.training.step, Path(path)


def _whole(path: Path) -> bool:
    names = {each.name for each in path.iterdir()}
    return {"model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"} <= names


def _stop(_: Any, control: Any) -> None:
    control.should_training_stop = True


def _end_epoch(_: Any, control: Any) -> None:
    control.should_epoch_stop = True


@pytest.mark.parametrize("saved_before", [False, True])
@pytest.mark.parametrize(
    ("point", "step", "do"),
    [
        ("on_step_end", 5, _stop),
        ("on_log", 5, _stop),
        ("on_evaluate", 6, _stop),
        ("on_evaluate", 8, _stop),
        ("on_epoch_end", 8, _stop),
        ("on_step_end", 10, _end_epoch),
    ],
)
@pytest.mark.parametrize("strategy", ["no", "best"])
def test_training_that_another_callback_ends_is_complete_with_its_last_step(
    run: Run, tmp_path: Path, point: str, step: int, do: Any, saved_before: bool, strategy: str
) -> None:
    evaluation = {"eval_strategy": "epoch"} if step == 8 else {"eval_strategy": "steps", "eval_steps": 2}
    # Of this loss each is worse than the one before, so that the strategy "best" saves nothing after the first.
    own = {"save_strategy": strategy, "metric_for_best_model": "loss", "greater_is_better": True}
    preemptible = run(At(point, step, do), **evaluation, **own, ours=2 if saved_before else 1000)
    assert preemptible.training.step == step
    at, files = _loaded(tmp_path)
    assert at == step
    assert _whole(files)


def test_one_that_ends_it_where_nobody_can_save_any_more_is_told_where_to_be_named(run: Run) -> None:
    with pytest.raises(RuntimeError, match=r"after step 4.*name Preemptible last among the callbacks"):
        run(after=At("on_epoch_end", 4, _stop))


@pytest.mark.parametrize("strategy", ["steps", "epoch", "best"])
def test_what_the_program_saves_itself_stays_though_it_is_saved_here_too(
    run: Run, tmp_path: Path, strategy: str
) -> None:
    found: list[set[str]] = []

    def look(args: Any, _: Any) -> None:
        found.append({path.name for path in Path(args.output_dir).glob("checkpoint-*")})

    options: dict[str, Any] = {"save_strategy": strategy, "save_total_limit": 1}
    if strategy == "steps":
        options |= {"save_steps": 4}
    if strategy == "best":
        options |= {"eval_strategy": "steps", "eval_steps": 4, "metric_for_best_model": "loss"}
    run(At("on_step_end", 7, look), At("on_step_end", 12, look), **options, ours=2)
    assert found == [{"checkpoint-4"}, {"checkpoint-8"}], "and ours takes none of their places"
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["checkpoint-12"]
    assert _whole(tmp_path / "output" / "checkpoint-12")
    assert _loaded(tmp_path)[0] == STEPS


def test_ours_alone_is_removed_and_the_limit_is_the_programs_again(run: Run, tmp_path: Path) -> None:
    limits: list[int | None] = []
    look = At("on_step_end", 7, lambda args, _: limits.append(args.save_total_limit))
    run(look, ours=2, save_total_limit=3)
    assert limits == [3]
    assert not list((tmp_path / "output").iterdir())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("spot-training-")] == []


def test_directories_and_empty_files_in_the_trainers_checkpoint_come_back(run: Run, tmp_path: Path) -> None:
    def write(args: Any, _: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{STEPS}" / "additional_chat_templates"
        folder.mkdir()
        (folder / "tool_use.jinja").write_text("{{ messages }}")
        (folder / "empty").touch()

    run(At("on_save", STEPS, write))
    _, files = _loaded(tmp_path)
    assert (files / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ messages }}"
    assert (files / "additional_chat_templates" / "empty").read_bytes() == b""


def test_a_file_outside_the_directory_is_refused(tmp_path: Path) -> None:
    preemptible = Preemptible(directory=tmp_path / "checkpoints", scratch=tmp_path)
    for name in ("../outside", "/outside", "a/../../outside"):
        with pytest.raises(ValueError, match="outside its directory"):
            preemptible._restore({name: torch.zeros(1, dtype=torch.uint8)})
    preemptible.training.close()


def test_completed_and_started_again_nothing_empty_is_saved(run: Run, tmp_path: Path) -> None:
    run()
    again = run()
    assert again.training.finished
    step, files = _loaded(tmp_path)
    assert (step, _whole(files)) == (STEPS, True)


def test_its_checkpoints_are_thinned_out_and_compressed_as_said(run: Run, tmp_path: Path) -> None:
    run(saves={"save_every_steps": 2, "keep": 1, "keep_every_steps": 4, "compress": "gzip"})
    assert sorted(path.name for path in tmp_path.glob("checkpoints/*/step-*")) == [
        f"step-{step:012}" for step in (4, 8, 12)
    ]
    assert all((path / "state.pt.gz").stat().st_size for path in tmp_path.glob("checkpoints/*/step-*"))
    assert _whole(_loaded(tmp_path)[1])


@pytest.mark.parametrize(("ours", "batches"), [(1000, IN_AN_EPOCH), (8, 2)])
def test_told_to_stop_while_it_evaluates_it_loses_no_step_and_ends_at_once_if_that_is_saved(
    run: Run, tmp_path: Path, ours: int, batches: int
) -> None:
    told = ToldToStop(8)
    with pytest.raises(SystemExit) as ended:
        run(told, eval_strategy="epoch", per_device_eval_batch_size=2, ours=ours)
    assert ended.value.code == 143
    assert told.evaluated == [4] * IN_AN_EPOCH + [8] * batches
    step, files = _loaded(tmp_path)
    assert (step, _whole(files)) == (8, True)
    resumed = run()
    assert (resumed.training.resumed_step, resumed.training.step) == (8, STEPS)
