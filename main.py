"""Train a network on noisy labels: one run of one method on one dataset.

  python main.py params/digits/discrimloss.yaml                                  40 % wrong labels, no download
  python main.py params/mnist/superloss.yaml noise.fraction=0.6 seed=2           any key on the command line
  python main.py params/cifar10/discrimloss.yaml precision=bf16 compile=true channels_last=true
  python main.py params/cifar10/gce.yaml noise.kind=pair noise.fraction=0.4 loss.q=0.5 run_dir=runs/try
  python main.py params/folder/discrimloss.yaml data_root=images                 your own train/ and test/ folders
  python main.py params/digits/discrimloss.yaml --help                           this text, and every key with its value

The same command again goes on where the run stopped, or says that it is finished. Ctrl-C, SIGTERM and SIGUSR1 end the
step, save and exit with 75. What a run leaves in runs/<dataset>/<method>/<noise>/seed<k> is listed in README.md.
"""

import sys
import time

import torch
from tqdm import tqdm

import datasets
import losses
import models
from datasets.loader import make_loaders
from datasets.noise import inject
from losses.base import as_objective
from losses.task import GRADIENT_NORMS, get_task_loss
from utils import optimizers, schedules
from utils.build import build, check_fit
from utils.checkpoint import Checkpoint, StopRequest
from utils.config import parse
from utils.device import choose_device
from utils.metrics import METRICS, TrainingRecord, evaluate, predict, sample_table
from utils.record import RunDirectory
from utils.seed import seed_everything

PACKAGES = {"dataset": datasets, "model": models, "loss": losses, "optimizer": optimizers, "schedule": schedules}
CHECK_EVERY = 50  # steps between two looks at the loss from the host: each waits for the device
INTERRUPTED = 75  # EX_TEMPFAIL: run the same command again


class Run:
    """Everything that a configuration describes: built, and restored where its directory holds a checkpoint."""

    def __init__(self, config: dict, directory: RunDirectory):
        self.config, self.directory = config, directory
        self.device, self.autocast = choose_device(config["device"], config["precision"], config["threads"])
        self.task_loss = get_task_loss(config["task"], config["task_loss"])
        self.metric = METRICS[config["task"]]
        data = self.data = build(datasets, config["dataset"], data_root=config["data_root"])
        counts = {"num_samples": len(data.train), "num_outputs": len(data.classes)}
        self.noise = inject(data.train.targets, **config["noise"], num_classes=len(data.classes), trusted=data.trusted,
                            dataset=config["dataset"]["name"], data_root=config["data_root"])
        self.loaders = make_loaders(data, self.noise.given, batch_size=config["batch_size"], device=self.device,
                                    seed=config["seed"], validation_fraction=config["validation"]["fraction"])

        seed_everything(config["seed"])
        self.model = build(models, config["model"], **counts, in_channels=data.in_channels, image_size=data.image_size)
        self.model.to(self.device, memory_format=torch.channels_last if config["channels_last"] else torch.preserve_format)
        check_fit(self.model, self.task_loss, torch.zeros(2, data.in_channels, *2 * [data.image_size], device=self.device),
                  data.train.targets[:2].to(self.device))
        self.objective = as_objective(build(losses, config["loss"], task_loss=self.task_loss, **counts)).to(self.device)
        self.optimizer = build(optimizers, config["optimizer"], params=self.model.parameters())
        self.schedule = config["schedule"] and build(schedules, config["schedule"], optimizer=self.optimizer)
        self.record = TrainingRecord(len(data.train), self.task_loss, GRADIENT_NORMS[self.task_loss], self.metric, self.device)
        directory.begin(self.noise, metric=self.metric.__name__)
        self.checkpoint = Checkpoint(directory.path, model=self.model, objective=self.objective, optimizer=self.optimizer,
                                     schedule=self.schedule, record=self.record, log=directory)
        self.epoch, self.step = self.checkpoint.load() or (0, 0)  # what to train on next
        self.forward = torch.compile(self.model) if config["compile"] else self.model


def train(run: Run, stop: StopRequest) -> int:
    """Train to the last epoch and say what became of every sample (returns 0), or until a signal asks to stop."""
    while run.epoch < run.config["epochs"]:
        train_epoch(run, stop)
        if run.step == len(run.loaders.train):
            end_epoch(run)
            run.epoch, run.step = run.epoch + 1, 0
        run.checkpoint.save(run.epoch, run.step)
        if stop.signal and run.epoch < run.config["epochs"]:
            print(f"{stop.signal}: saved at epoch {run.epoch}, step {run.step}; the same command goes on from there")
            return INTERRUPTED
    outputs = predict(run.forward, run.loaders.train_plain, run.autocast)
    table = sample_table(*outputs, task_loss=run.task_loss, true=run.noise.true, score=run.objective.sample_score(),
                         mean_loss=run.record.samples["loss_total"] / run.config["epochs"])
    run.directory.finish(table, run.data.classes, run.data.train.images)
    return 0


def train_epoch(run: Run, stop: StopRequest):
    """Train on the batches of run.epoch from run.step on."""
    run.model.train()
    run.objective.train()
    run.objective.set_epoch(run.epoch)
    run.loaders.train.set_epoch(run.epoch, run.step)
    if run.step == 0:
        seed_everything(run.config["seed"], run.epoch)
        run.record.start_epoch()
    start = time.perf_counter()
    bar = tqdm(run.loaders.train, f"epoch {run.epoch}", initial=run.step, unit=" images", unit_scale=run.config["batch_size"],
               postfix=run.directory.latest("test_metric"), leave=False, disable=None)  # quiet where there is no terminal
    for batch in bar:
        with run.autocast():
            loss = run.objective(run.forward, batch)
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()

        run.record.update(run.step, loss, run.objective.output, batch)
        run.step += 1
        if run.step % CHECK_EVERY == 0 or run.step == len(run.loaders.train):
            run.record.check(run.epoch, run.loaders.train)
            bar.set_postfix(run.directory.latest("test_metric"), loss=loss.item())
        if stop.signal:
            break
    run.record.check(run.epoch, run.loaders.train)  # waits for the device, so that the clock is right
    run.record.seconds += time.perf_counter() - start


def end_epoch(run: Run):
    """Evaluate, add a row to metrics.csv, step the schedule."""
    row = {"epoch": run.epoch, "lr": run.optimizer.param_groups[0]["lr"]}
    row["test_metric"] = evaluate(run.forward, run.loaders.test, run.metric, run.autocast)
    if run.loaders.validation:
        row["validation_metric"] = evaluate(run.forward, run.loaders.validation, run.metric, run.autocast)
    run.directory.add_row(row | run.record.end_epoch(run.loaders.train.rows, run.noise.corrupted))
    if run.schedule:
        run.schedule.step()


def main(arguments: list[str]) -> int:
    run = None
    try:
        config = parse(arguments, __doc__, PACKAGES)
        with RunDirectory(config) as directory, StopRequest() as stop:
            if directory.finished:
                print(f"{directory.path} is finished: {directory.describe()}")
                return 0
            run = Run(config, directory)
            return train(run, stop)
    except (ValueError, OSError, FloatingPointError) as error:
        if run and isinstance(error, ValueError):
            raise  # not something the user asked for: show where
        print(f"error: {error}", file=sys.stderr)
        return 1 if run else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
