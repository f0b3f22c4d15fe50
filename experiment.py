"""Everything that a configuration describes, and the order in which it is built."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import datasets
import losses
import models
from datasets import features, loader, look, noise, selection, splits
from datasets.base import warn
from datasets.contents import contents
from datasets.streams import batch_slices, chunks_per_pass
from losses.base import Objective, as_objective
from losses.task import get_task_loss
from models import backbones
from models.several import build_several
from utils import exports, optimizers, run_inputs, schedules
from utils.build import asks_for, build
from utils.checkpoint import Checkpoint
from utils.config import Schema, without_own_rate, without_selection
from utils.detection import (
    measure_detection,
    measure_learning,
    measure_recovery,
    sample_table,
    without_training,
    wrong_labels,
)
from utils.device import choose_device
from utils.distributed import data_parallel, fail_together, local_main_first, main_process_only
from utils.epoch_log import EpochLog
from utils.errors import UserError
from utils.escapes import printable
from utils.evaluation import (
    check_batch_of_one,
    check_fit,
    evaluate,
    in_a_table,
    predict,
    prediction_table,
)
from utils.files import map_array
from utils.labels import read_labels
from utils.metrics import METRIC_OF_TASK
from utils.network import WEIGHTS, describe_use, load_weights
from utils.run_directory import RunDirectory, update_summary
from utils.run_state import describe, read_summary
from utils.scores import IN_TRAINING, OUT_OF_SAMPLE, RECORDED, recorded, suspicion
from utils.seed import seed_everything
from utils.training_dynamics import margins
from utils.training_record import TrainingRecord

# What each section is built from, and the facts that a constructor may ask for by the name of an
# argument. A fact is computed only if it is asked for.
SCHEMAS = {
    "dataset": Schema(
        datasets,
        {
            "data_root": lambda self: self.config["data_root"],
            "seed": lambda self: self.config["seed"],
            "device": lambda self: self.device,
        },
    ),
    "features": Schema(backbones, {}),
    "model": Schema(
        models,
        {
            "num_outputs": lambda self: self.data.num_outputs,
            "in_channels": lambda self: self.data.in_channels,
            "image_size": lambda self: self.data.image_size,
            "image_mean": lambda self: self.data.mean,
            "image_std": lambda self: self.data.std,
        },
    ),
    "loss": Schema(
        losses,
        {
            "task_loss": lambda self: self.task_loss,
            "num_samples": lambda self: len(self.data.train),
            "num_outputs": lambda self: self.data.num_outputs,
            "given": lambda self: self.given,
            "trusted_labels": lambda self: self.trusted_labels,
            "verified": lambda self: self.verified,
            "noise_rate": lambda self: self.noise_rate,
            "noise_transition": lambda self: self.noise_transition,
            "model": lambda self: self.model,
            "epochs": lambda self: self.epochs,
            "steps_per_epoch": lambda self: self.steps_per_epoch,
        },
    ),
    "optimizer": Schema(optimizers, {"params": lambda self: self.model.parameters()}),
    "schedule": Schema(
        schedules,
        {
            "optimizer": lambda self: self.optimizer,
            "epochs": lambda self: self.epochs,
            "steps_per_epoch": lambda self: self.loaders.steps_per_pass / self._epochs_per_pass,
        },
    ),
    "selection": Schema(
        selection.make_selection,
        {
            "noise": lambda self: self.noise,
            "rows": lambda self: self.parts.rows,
            "classes": lambda self: self.data.classes,
        },
    ),
}


class Experiment:
    """One run, ready to train.

    Attributes:
        model: the network, or several as one module; ``forward``: the same for several processes,
            compiled if that is asked for.
        objective: the method.
        loaders: datasets.loader.Loaders.
        record: what an epoch of training shows of every sample.
        log: metrics.csv and summary.json.
        epochs, epoch, step: how many there are, of passes or of chunks of them, and what to train
            on next.
    """

    def __init__(self, config: dict, directory: RunDirectory):
        self.config, self.path = config, directory.path
        self.device, self.autocast = choose_device(
            config["device"],
            precision=config["precision"],
            threads=config["threads"],
            deterministic=config["deterministic"],
        )
        # 1. The data, and what is to be learned from them.
        self.dataset_spec, self.selection_spec = without_selection(config["dataset"])
        encoder = config["model"].get("path")  # of texts, if the dataset names no other
        self.data = local_main_first(self._build, "dataset", self.dataset_spec, encoder=encoder)
        if config["features"] is not None:
            self.data = local_main_first(with_features, self.data, config, self.device)
        self.task_loss = get_task_loss(config["task"], config["task_loss"], self.data.task)
        self.metric = METRIC_OF_TASK[self.data.task]
        self._check_score()
        # 2. The noise, before the split: which labels are wrong does not depend on what is held
        #    out, and what is held out is stratified by its given labels.
        self.noise = self._inject_noise()
        # 3. The split, before a selection: what is held out is not selected from.
        self.parts = splits.split_rows(
            self.noise,
            validation=config["validation"],
            trusted=config["trusted"],
            seed=config["noise"]["seed"],
            verified=self.data.verified,
            original=self.data.original,
            classes=self.data.classes,
        )
        # 4. What another run has found out about these samples.
        self.selection = self.targets = None
        if self.selection_spec is not None:
            facts = self._facts("selection", self.selection_spec)
            self.selection = selection.make_selection(**self.selection_spec, **facts)
        if config["targets"] is not None:
            self.targets = read_labels(
                config["targets"],
                num_samples=len(self.data.train),
                num_classes=len(self.data.classes),
                sha256=self.noise.sha256,
            )
        # 5. The seed, before the model: initial parameters follow from the seed alone, whatever the
        #    steps above have drawn.
        seed_everything(config["seed"])
        # 6. The model, before the method, which may copy it.
        self.model = self._build_model()
        self._look()
        # 7. The method, before the loaders: it says what a batch is to hold.
        self.objective = self._build_objective()
        self.loaders = loader.make_loaders(
            self.data,
            self.noise,
            self.parts,
            self.selection,
            batch_size=config["batch_size"],
            device=self.device,
            seed=config["seed"],
            targets=self.targets,
            unlabelled=self.objective.unlabelled,
            trusted_batch_size=self.objective.trusted_batch_size,
            chunk_steps=config["chunk_steps"],
            record_losses=config["record_losses"],
            augment_recording=config["augment_recording"],
        )
        if self._smallest_batch() == 1:
            check_batch_of_one(self.model, self.data.example(), self.device)
        # 8. The optimiser and its schedule, after the loaders: they count the steps of a pass.
        self.optimizer = self._build_optimizer()
        self.schedule = config["schedule"] and self._build("schedule", config["schedule"])
        self.record = TrainingRecord(len(self.data.train), self.task_loss, self.metric, self.device)
        # 9. The files, last: a configuration that is refused leaves nothing behind.
        self.log = directory.log = EpochLog(
            self.path,
            config,
            data=self.data,
            noise=self.noise,
            metric=self.metric,
            selection=None if self.selection is None else self.selection.report,
            unreadable=self.loaders.unreadable,
            origins=self._origins(),
        )
        self._write_inputs()
        self.checkpoint = Checkpoint(
            self.path,
            self._can_go_on_from,
            model=self.model,
            objective=self.objective,
            optimizer=self.optimizer,
            schedule=self._schedule_from_its_start(),
            record=self.record,
            log=self.log,
        )

    def _schedule_from_its_start(self):
        extended = self.config["extended"] is not None and self.schedule is not None
        return schedules.FromItsStart(self.schedule) if extended else self.schedule

    def resume(self):
        """Go on from the checkpoint, if there is one, and distribute the model.

        Raises OSError if a finished run is to go on for more epochs, and has none.
        """
        position = self.checkpoint.load()
        with fail_together():
            self._go_on(position)
        self.epoch, self.step = position or (0, 0)
        if self.config["record_losses"]:
            run_inputs.check_losses(self.path, self.epoch, self.parts.rows)
        self.forward = data_parallel(self.model, self.device, self.config["compile"])

    @main_process_only
    def _go_on(self, position):
        """A finished run is so no more, and its configuration is the present one."""
        if position is None and read_summary(self.path).get("finished"):
            raise OSError(
                f"{self.path} is finished, and the checkpoint from which it could go on for more "
                "epochs is gone: choose another run_dir="
            )
        update_summary(self.path, finished=False)
        run_inputs.write_config(self.path, self.config)

    def _origins(self):
        """What left the files of other runs that this one depends on."""
        files = {"recording": (self.selection_spec or {}).get("history")}
        files["targets"] = self.config["targets"]
        start = self.config["init_from"]
        files["init_from"] = start and Path(start, WEIGHTS)
        return {name: run_inputs.origin(Path(path)) for name, path in files.items() if path}

    def _can_go_on_from(self, epoch, step):
        steps = len(self.loaders.train)
        return 0 <= epoch <= self.epochs and 0 <= step < steps and len(self.log.rows) == epoch

    @property
    def noise_rate(self) -> float | None:
        """Which part of the given labels of what is trained on is wrong; None if that is unknown.

        Also with ``targets=``, since nobody knows how many wrong labels a method has left.
        """
        corrupted = self.learned.corrupted
        return None if corrupted is None else float(corrupted.mean())

    @property
    def trusted_labels(self) -> Tensor | None:
        """[N]: the true labels of trusted samples, -1 of others; None if they are another part."""
        if self.data.verified is not None:
            return None
        rows = self.parts.trusted
        known = np.full(len(self.noise.true), -1, self.noise.true.dtype)
        known[rows] = self.noise.true[rows]
        return torch.from_numpy(known)

    @property
    def verified(self) -> Tensor:
        """[N]: 1 if a given label is known to be right, 0 if wrong, -1 if that is not known.

        Raises UserError if trusted samples are not trained on with their given labels.
        """
        if self.parts.train != "given":
            raise UserError(
                f"{self.config['loss']['name']} compares trusted samples with others by their "
                f"given labels: set trusted.count to how many, and trusted.train=given"
            )
        known = self.trusted_labels
        return torch.where(known < 0, -1, (known == self.given).long())

    @property
    def given(self) -> Tensor:
        """The labels [N] that are trained on: the given ones, but for trusted samples."""
        return loader.learned_targets(self.noise, self.parts)

    @property
    def corrupted(self) -> np.ndarray | None:
        """[N] bool: what is trained on is not the true label; None if the truth is unknown.

        Of targets that another run left, and of distributions the most probable class.
        """
        learned = loader.learned_targets(self.noise, self.parts, self.targets)
        if learned.ndim == 2:
            learned = learned.argmax(1)
        return wrong_labels(learned.numpy(), self.noise.true)

    @property
    def noise_transition(self) -> Tensor | None:
        """[C, C]: row c is how those of class c are labelled; None if that is not known."""
        learned = self.learned
        return None if learned.corrupted is None else torch.from_numpy(learned.transition)

    @property
    def learned(self) -> noise.Noise:
        """The noise of the samples that are trained on alone, selected or trusted ones too."""
        rows = self._training_rows().numpy()
        return replace(self.noise, given=self.given.numpy()[rows], true=self.noise.true[rows])

    @property
    def epochs(self) -> int:
        """Epochs of the method: passes over the samples that are trained on, or chunks of them."""
        return self.config["epochs"] * self._epochs_per_pass

    @property
    def steps_per_epoch(self) -> float:
        """Batches of an epoch of the method, in the mean: the last chunk may be shorter."""
        return len(self._batches()) / self._epochs_per_pass

    @property
    def _epochs_per_pass(self):
        steps = self.config["chunk_steps"]
        return chunks_per_pass(len(self._batches()), steps) if steps else 1

    def _training_rows(self):
        return loader.training_rows(self.parts, self.selection)

    def _batches(self):
        return batch_slices(len(self._training_rows()), self.config["batch_size"])

    def _smallest_batch(self):
        sizes = {batch.stop - batch.start for batch in self._batches()}
        sizes.add(self.objective.trusted_batch_size or self.config["batch_size"])
        return min(sizes)

    def predict_training(self):
        """Outputs, targets and indices of all training samples, in evaluation mode."""
        return predict(
            self.objective.evaluated(self.forward), self.loaders.train_plain, self.autocast
        )

    def evaluate(self) -> dict:
        """The metrics of all parts that are evaluated after an epoch; losses are recorded."""
        model = self.objective.evaluated(self.forward)
        row = evaluate(model, self.loaders.evaluation, self.metric, self.autocast)
        if self.loaders.recording:
            *values, index = predict(
                model, self.loaders.recording, self.autocast, self._keep_recorded
            )
            self.record_losses(values, index)
        self.loaders.exchange_unreadable()
        return row

    @property
    def _recordings(self):
        return ("losses.npy", "margins.npy") if self.data.classes else ("losses.npy",)

    def _keep_recorded(self, output, target):
        losses_of_samples = self.task_loss(output, target)
        if not self.data.classes:
            return (losses_of_samples,)
        return losses_of_samples, margins(output, target)

    def finish(self):
        """Write what has become of every sample, the pictures, and the finished summary."""
        # Of a run that was killed after its last checkpoint, no epoch has set the loaders: test
        # images may be cropped anew in each.
        self.loaders.set_epoch(self.epochs - 1, 0)
        model = self.objective.evaluated(self.forward)

        def table(part, whole=False):
            keep = in_a_table(self.task_loss, whole)
            return prediction_table(*predict(model, part, self.autocast, keep))

        trained, held_out = table(self.loaders.train_plain), self.loaders.held_out
        if held_out:
            held_out = table(held_out, whole=self.config["validation"]["folds"] is not None)
        tested = table(self.loaders.evaluation["test"]) if len(self.data.test) else None
        scores, score = self._scores(trained)
        finished = exports.FinishedRun(
            self.path,
            self.data,
            self.metric,
            sample_table(trained, self.noise.true, scores=scores, score=score),
            held_out and without_training(held_out, self.noise.true),
            tested,
            self.objective.labels(),
            self.noise.sha256,
            self.objective.evaluated(self.model),
            describe_use(self.config, self.data, self.objective.networks),
        )
        self._export(finished)

    def _scores(self, trained):
        """All scores of the training samples by name, [N] each, and the one that ranks them.

        Of a run on selected samples, what has selected them stands for mean loss and score, since
        the run itself knows nothing of the others; of one on trusted samples alone, the loss of
        the finished model.
        """
        scores, chosen = {"mean_loss": self.record.mean_loss(self.config["epochs"])}, None
        if self.record.dynamics:
            scores |= self.record.dynamics.scores()
        if self.selection is not None:
            scores["mean_loss"] = self.selection.mean_loss
        elif self.parts.train == "only":
            scores["mean_loss"] = np.zeros_like(scores["mean_loss"])
            scores["mean_loss"][trained["index"]] = trained["loss"]
        else:
            chosen = self.objective.sample_score()
        if self.config["record_losses"]:
            recordings = [map_array(self.path / name) for name in self._recordings]
            scores |= recorded(*recordings)
        if self.config["score"] is not None:
            return scores, suspicion(self.config["score"], scores)
        return scores, scores["mean_loss"] if chosen is None else chosen.numpy(force=True)

    @main_process_only
    def _export(self, finished):
        for write in exports.FILES:
            write(finished)
        for draw in exports.PICTURES:
            try:
                draw(finished)
            except Exception as error:  # whatever it is, the results are there
                reason = f"{type(error).__name__}: {error}".split("\n")[0]
                print(printable(f"warning: {draw.__name__} has failed ({reason})"), file=sys.stderr)
        recovery = measure_recovery(finished.labels, self.noise.true, self.parts.rows)
        learning = measure_learning(finished.samples)
        detection = measure_detection(finished.samples)
        self.log.write_summary(detection=detection, recovery=recovery, learning=learning)
        if learning["warning"]:
            print(f"warning: {learning['warning']}", file=sys.stderr)
        print(printable(f"{self.path}: {describe(read_summary(self.path))}"))

    @main_process_only
    def record_losses(self, values: list[Tensor], index: Tensor):
        """Write losses and margins of these samples as those of the present epoch."""
        for name, part in zip(self._recordings, values, strict=True):
            run_inputs.record(self.path / name, self.epoch, part.numpy(), index.numpy())

    @main_process_only
    def _write_inputs(self):
        print(printable(f"{self.path}: {self.data}"), flush=True)
        targets = None if self.targets is None else self.targets.numpy()
        if not (self.path / "config.yaml").exists():
            # first, as it tells a run's directory from any other; one that is there is replaced
            # when nothing can be refused any more
            run_inputs.write_config(self.path, self.config)
        listing = None
        if self.data.made_split or self.config["features"] is not None:
            # which files these are depends on what all of them hold
            listing = run_inputs.list_files(self.data.train.source, self.data.test.source)
        run_inputs.write_noise(self.path, self.noise, self.parts.trusted, targets, listing)
        if self.data.made_split:
            run_inputs.write_split(self.path, listing)
        run_inputs.write_data(self.path, contents_of(self.config))
        if self.selection is not None:
            run_inputs.write_selection(self.path, self.selection)
        if self.config["record_losses"]:
            count = len(self.data.train)
            extended = self.config["extended"] is not None
            run_inputs.create_recordings(
                self.path, self._recordings, self.epochs, count, longer=extended
            )

    def _check_score(self):
        score = self.config["score"]
        if score in OUT_OF_SAMPLE:
            raise UserError(
                f"score={score} takes predictions of networks that were not trained on a sample: "
                f"run the folds with examples/folds.sbatch, and join them with it"
            )
        in_part = self.selection_spec is not None or self.config["trusted"]["train"] == "only"
        if in_part and score in IN_TRAINING and score != "mean_loss":
            raise UserError(
                f"score={score} is of samples that are trained on, and here that is only a part of "
                f"them: take mean_loss, or {score}_recorded with record_losses=true"
            )
        if score in RECORDED and not self.config["record_losses"]:
            raise UserError(f"score={score} is made from recordings: set record_losses=true")
        if score not in (None, "mean_loss", "mean_loss_recorded") and not self.data.classes:
            raise UserError(
                f"score={score} is of classes, and this is a regression, which has mean_loss"
            )

    def _inject_noise(self):
        return noise.inject(
            self.data.train.targets,
            **self.config["noise"],
            num_classes=len(self.data.classes),
            classes=self.data.classes,
            trusted=self.data.trusted,
            true=self.data.true,
            dataset=self.dataset_spec["name"],
            data_root=self.config["data_root"],
            inputs=self.data.train.source,
        )

    def _build_model(self):
        method = getattr(losses, self.config["loss"]["name"])
        networks = getattr(method, "networks", 1)  # of an Objective; a SampleLoss knows of one
        model = build_several(
            lambda: self._build("model", self.config["model"]),
            networks,
            self.config["evaluate_networks"],
        )
        if self.config["init_from"] is not None:
            load_weights(model, Path(self.config["init_from"]))
        channels_last = self.config["channels_last"]
        memory_format = torch.channels_last if channels_last else torch.preserve_format
        model.to(self.device, memory_format=memory_format)
        example, targets = self.data.example(), self.data.train.targets[:2]
        check_fit(model, self.task_loss, example, targets, self.device)
        return model

    def _look(self):
        """Say what about images and network does not go together."""
        model = self.config["model"]
        lines = look.mismatches(
            self.data,
            pretrained=bool(model.get("pretrained") or model.get("weights")),
            num_parameters=sum(parameter.numel() for parameter in self.model.parameters()),
        )
        for line in lines:
            warn(line)

    def _build_objective(self) -> Objective:
        spec = without_own_rate(losses, self.config["loss"])
        objective = as_objective(self._build("loss", spec))
        if self.targets is not None and self.targets.ndim == 2 and not objective.takes_soft_targets:
            raise UserError(
                f"targets={self.config['targets']} holds a distribution for each sample, and "
                f"{spec['name']} needs a class: use Plain, SuperLoss or DiscrimLoss"
            )
        if objective.needs_soft_targets and (self.targets is None or self.targets.ndim != 2):
            raise UserError(
                f"{spec['name']} learns from the predictions of another run: set "
                f"targets=<its directory>/labels.npz, of a run of Teacher"
            )
        return objective.to(self.device)

    def _build_optimizer(self):
        own = optimizers.own_parameters(self.objective, self.model)
        rate = None
        if "lr" in self.config["loss"] and not asks_for(losses, self.config["loss"], "lr"):
            rate = self.config["loss"]["lr"]
            if not own:
                raise UserError(
                    f"loss.lr is the learning rate of a method's own parameters, and "
                    f"{self.config['loss']['name']} has none"
                )
        return optimizers.make(self.config["optimizer"], self.model.parameters(), own, rate)

    def _build(self, section, spec, **fallbacks):
        return build(SCHEMAS[section].package, spec, **self._facts(section, spec), **fallbacks)

    def _facts(self, section, spec):
        package, facts = SCHEMAS[section]
        if section == "selection":
            return {name: fact(self) for name, fact in facts.items()}
        return {name: fact(self) for name, fact in facts.items() if asks_for(package, spec, name)}


def build_data(config: dict) -> datasets.base.Dataset:
    """The data of a run's configuration alone, to look at: texts are not embedded."""
    spec, _ = without_selection(config["dataset"])
    if spec["name"] == "text":
        spec = spec | {"features": False}
    facts = {"data_root": config["data_root"], "seed": config["seed"], "device": "cpu"}
    known = {name: fact for name, fact in facts.items() if asks_for(datasets, spec, name)}
    data = build(datasets, spec, **known, encoder=config["model"].get("path"))
    return data if config.get("features") is None else with_features(data, config, "cpu")


def with_features(
    data: datasets.base.Dataset, config: dict, device: torch.device | str
) -> datasets.base.Dataset:
    """The data with features in the place of images; those once made are kept."""
    backbone = build(backbones, config["features"])
    folder = Path(config["data_root"], "cache", "features")
    return features.replace_images(data, **backbone._asdict(), device=device, folder=folder)


def contents_of(config: dict) -> dict[str, dict]:
    """What the data of a configuration are, as of datasets.contents."""
    spec, chosen = without_selection(config["dataset"])
    return contents(
        spec,
        noise_kind=config["noise"]["kind"],
        targets=config["targets"],
        recording=(chosen or {}).get("history"),
        data_root=config["data_root"],
    )


@main_process_only
def say_finished(config: dict, directory: Path):
    """Say how a finished run has ended.

    Raises UserError if its data have changed since.
    """
    try:
        changed = run_inputs.changes(directory, contents_of(config))
    except FileNotFoundError as error:
        reason = f"the data are not there any more, nor compared: {error}"
        print(f"warning: {printable(reason)}", file=sys.stderr)
    else:
        if changed:
            raise UserError(
                f"{directory} is finished, but its data have changed since: {changed}; choose "
                f"another run_dir=, or remove that one"
            )
    print(printable(f"{directory} is finished: {describe(read_summary(directory))}"))
