"""Train a network on noisy labels: one run of one method on one dataset.

  python main.py params/digits/discrimloss.yaml
      40 % wrong labels, no download
  python main.py params/mnist/gce.yaml noise.kind=pair loss.q=0.5 seed=2
      any key on the command line
  torchrun --nproc-per-node=2 main.py params/cifar10/discrimloss.yaml precision=bf16 compile=true
      two GPUs
  python main.py params/folder/discrimloss.yaml dataset.root=images
      your own images, in folders <class>/

The same command again goes on where the run stopped, or says that it is finished. Ctrl-C, SIGTERM
and SIGUSR1 end the step, save and exit with 75 (torchrun: SIGTERM, 1). --help after a params file
lists all keys. README.md and docs say the rest.
"""

import sys

from experiment import SCHEMAS, Experiment, say_finished
from utils import optimizers, schedules
from utils.checkpoint import StopRequest
from utils.command_line import parse
from utils.distributed import end_process, fail_together, process_group, rank_seed
from utils.errors import UserError
from utils.escapes import printable
from utils.run_directory import RunDirectory
from utils.run_state import INTERRUPTED
from utils.seed import seed_everything
from utils.workers import workers_end_too


def train(run: Experiment, stop: StopRequest) -> int:
    """Train to the last epoch, or until a signal asks to stop; returns the exit code."""
    run.resume()
    while run.epoch < run.epochs:
        train_epoch(run, stop)
        if run.step == len(run.loaders.train):
            end_epoch(run)
            run.epoch, run.step = run.epoch + 1, 0
        signal = stop.agreed()
        over = run.epoch == run.epochs
        run.checkpoint.save(run.epoch, run.step, needed=signal is not None or over)
        if signal is not None and not over:
            run.log.note_interruption(signal, run.epoch, run.step)
            return INTERRUPTED
    run.finish()
    return 0


def train_epoch(run: Experiment, stop: StopRequest):
    """Train on the batches of run.epoch from run.step on."""
    run.model.train()
    run.objective.train()
    run.objective.set_epoch(run.epoch)
    run.loaders.set_epoch(run.epoch, run.step)
    if run.step == 0:
        seed_everything(run.config["seed"], run.epoch, *rank_seed())
    run.record.start(run.step, lr=run.optimizer.param_groups[0]["lr"])
    bar = run.log.progress(run.loaders.train, run.epoch, run.step)
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
        if run.record.is_due or run.step == len(run.loaders.train):
            run.record.check(run.epoch, run.loaders.train)
            bar.set_postfix(run.log.latest(), loss=loss.item())
        if stop.agreed():
            break
    run.record.stop(run.epoch, run.loaders.train)


def end_epoch(run: Experiment):
    """Evaluate, add a row to metrics.csv, step the schedule, let the method change its state."""
    row = {"epoch": run.epoch} | run.evaluate()
    run.log.add_row(row | run.record.end_epoch(run.corrupted))
    schedules.step(run.schedule, after="epoch")
    run.objective.end_epoch(run.predict_training)


def main(arguments: list[str]) -> int:
    run = None
    try:
        with process_group(), StopRequest() as stop:
            with fail_together():
                config = parse(arguments, __doc__, SCHEMAS)
            with RunDirectory(config, arguments) as directory:
                if directory.finished:
                    with fail_together():
                        say_finished(config, directory.path)
                    return 0
                with fail_together():
                    run = Experiment(config, directory)
                with workers_end_too():
                    return train(run, stop)
    except (UserError, OSError, FloatingPointError) as error:
        if run and isinstance(error, UserError):
            raise  # nothing that was asked for: show where
        print(f"error: {printable(error)}", file=sys.stderr)
        return 1 if run else 2


if __name__ == "__main__":
    end_process(main(sys.argv[1:]))
