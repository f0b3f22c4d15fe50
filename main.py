"""Train a network on noisy labels: one run of one method on one dataset.

  python main.py params/digits/discrimloss.yaml                                  40 % wrong labels, no download
  python main.py params/mnist/gce.yaml noise.kind=pair loss.q=0.5 seed=2         any key on the command line
  torchrun --nproc-per-node=2 main.py params/cifar10/discrimloss.yaml precision=bf16 compile=true         two GPUs
  python main.py params/folder/discrimloss.yaml dataset.root=images              your own train/ and test/ folders

The same command again goes on where the run stopped, or says that it is finished. Ctrl-C, SIGTERM
and SIGUSR1 end the step, save and exit with 75 (torchrun: SIGTERM, 1). --help after a params file
lists all keys. README.md says the rest.
"""

import sys

import torch

import datasets
import losses
import models
from datasets import loader, noise, selection, splits
from losses.base import as_objective
from losses.task import get_task_loss
from utils import optimizers, schedules
from utils.build import build
from utils.checkpoint import Checkpoint, StopRequest
from utils.config import parse, without_selection
from utils.detection import sample_table
from utils.device import choose_device
from utils.distributed import (
    data_parallel,
    fail_together,
    local_main_first,
    process_group,
    rank_seed,
)
from utils.errors import UserError
from utils.evaluation import check_fit, evaluate, predict, prediction_table
from utils.metrics import METRIC_OF_TASK
from utils.record import RunDirectory
from utils.run_state import INTERRUPTED
from utils.seed import seed_everything
from utils.training_record import TrainingRecord

PACKAGES = {
    "dataset": datasets,
    "model": models,
    "loss": losses,
    "optimizer": optimizers,
    "schedule": schedules,
    "selection": selection.make_selection,
}
LOADING = (
    "batch_size",
    "chunk_steps",
    "seed",
    "record_losses",
    "augment_recording",
)  # keys that the loaders follow


class Run:
    """Everything that a configuration describes."""

    def __init__(self, config: dict, directory: RunDirectory):
        self.config, self.directory = config, directory
        self.device, self.autocast = choose_device(
            config["device"], config["precision"], config["threads"]
        )
        dataset, selected = without_selection(config["dataset"])
        data = local_main_first(
            build,
            datasets,
            dataset,
            data_root=config["data_root"],
            encoder=config["model"].get("path"),
            seed=config["seed"],
            device=self.device,
        )
        self.task_loss, self.metric = (
            get_task_loss(config["task"], config["task_loss"], data.task),
            METRIC_OF_TASK[data.task],
        )
        counts = {"num_samples": len(data.train), "num_outputs": data.num_outputs}
        self.noise = noise.inject(
            data.train.targets,
            **config["noise"],
            num_classes=len(data.classes),
            trusted=data.trusted,
            true=data.true,
            dataset=dataset["name"],
            data_root=config["data_root"],
        )
        parts = splits.split_rows(
            self.noise, validation=config["validation"], seed=config["noise"]["seed"]
        )
        self.selection = (
            None
            if selected is None
            else selection.make_selection(self.noise, parts.rows, **selected)
        )
        seed_everything(config["seed"])
        self.model = build(
            models,
            config["model"],
            **counts,
            in_channels=data.in_channels,
            image_size=data.image_size,
        )
        self.model.to(
            self.device,
            memory_format=torch.channels_last if config["channels_last"] else torch.preserve_format,
        )
        check_fit(self.model, self.task_loss, data.example(), data.train.targets[:2], self.device)
        self.objective = as_objective(
            build(
                losses,
                config["loss"],
                task_loss=self.task_loss,
                **counts,
                model=self.model,
                epochs=config["epochs"],
            )
        ).to(self.device)
        self.loaders = loader.make_loaders(
            data,
            self.noise,
            parts,
            self.selection,
            unlabelled=self.objective.unlabelled,
            device=self.device,
            **{key: config[key] for key in LOADING},
        )
        self.epochs = config["epochs"] * self.loaders.epochs_per_pass
        self.optimizer = optimizers.make(config["optimizer"], self.model.parameters())
        self.schedule = config["schedule"] and build(
            schedules,
            config["schedule"],
            optimizer=self.optimizer,
            epochs=config["epochs"],
            steps_per_epoch=self.loaders.steps_per_pass,
        )
        self.record = TrainingRecord(len(data.train), self.task_loss, self.metric, self.device)
        directory.begin(
            data,
            self.noise,
            self.metric,
            self.epochs,
            self.selection,
            self.loaders.unreadable,
        )
        self.checkpoint = Checkpoint(
            directory.path,
            model=self.model,
            objective=self.objective,
            optimizer=self.optimizer,
            schedule=self.schedule,
            record=self.record,
            log=directory,
        )


def train(run: Run, stop: StopRequest) -> int:
    """Train on to the last epoch and say what became of every sample (returns 0), or until a signal
    asks to stop.
    """
    run.epoch, run.step = run.checkpoint.load() or (0, 0)  # what to train on next
    run.forward = data_parallel(run.model, run.device, run.config["compile"])
    while run.epoch < run.epochs:
        train_epoch(run, stop)
        if run.step == len(run.loaders.train):
            end_epoch(run)
            run.epoch, run.step = run.epoch + 1, 0
        run.checkpoint.save(
            run.epoch, run.step, needed=bool(number := stop.agreed()) or run.epoch == run.epochs
        )
        if number and run.epoch < run.epochs:
            run.directory.interrupted(number, run.epoch, run.step)
            return INTERRUPTED
    trained, tested = (
        prediction_table(
            *predict(run.objective.evaluated(run.forward), loader, run.autocast), run.task_loss
        )
        for loader in (run.loaders.train_plain, run.loaders.evaluation["test"])
    )
    run.directory.finish(
        tested,
        sample_table(
            trained,
            run.noise.true,
            ranked=run.selection and run.selection.mean_loss,
            score=run.objective.sample_score(),
            mean_loss=run.record.mean_loss(run.config["epochs"]),
        ),
    )
    return 0


def train_epoch(run: Run, stop: StopRequest):
    """Train on the batches of run.epoch from run.step on."""
    run.model.train()
    run.objective.train()
    run.objective.set_epoch(run.epoch)
    run.loaders.set_epoch(run.epoch, run.step)
    if run.step == 0:
        seed_everything(run.config["seed"], run.epoch, *rank_seed())
    run.record.start(run.step, lr=run.optimizer.param_groups[0]["lr"])
    bar = run.directory.progress(run.loaders.train, run.epoch, run.step)
    for batch in bar:
        with run.autocast():
            loss = run.objective(run.forward, batch)
        run.optimizer.zero_grad()
        loss.backward()
        optimizers.step(run.optimizer, run.config["clip_norm"])
        schedules.step(run.schedule, after="batch")
        run.objective.after_step(run.model)
        run.record.update(run.step, loss, batch, run.objective.scored)
        run.step += 1
        if run.step % run.record.check_every == 0 or run.step == len(run.loaders.train):
            run.record.check(run.epoch, run.loaders.train)
            bar.set_postfix(run.directory.latest(), loss=loss.item())
        if stop.agreed():
            break
    run.record.stop(run.epoch, run.loaders.train)


def end_epoch(run: Run):
    """Evaluate, add a row to metrics.csv, record the losses, step the schedule."""
    model = run.objective.evaluated(run.forward)
    row = {"epoch": run.epoch} | evaluate(model, run.loaders.evaluation, run.metric, run.autocast)
    if run.loaders.recording:
        run.directory.add_losses(
            run.epoch, run.task_loss, *predict(model, run.loaders.recording, run.autocast)
        )
    run.loaders.exchange_unreadable()
    run.directory.add_row(row | run.record.end_epoch(run.noise.corrupted))
    schedules.step(run.schedule, after="epoch")


def main(arguments: list[str]) -> int:
    run = None
    try:
        with process_group(), StopRequest() as stop:
            with fail_together():
                config = parse(arguments, __doc__, PACKAGES)
            with RunDirectory(config) as directory:
                if directory.finished:
                    return 0
                with fail_together():
                    run = Run(config, directory)
                return train(run, stop)
    except (UserError, OSError, FloatingPointError) as error:
        if run and isinstance(error, UserError):
            raise  # not something the user asked for: show where
        print(f"error: {error}", file=sys.stderr)
        return 1 if run else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
