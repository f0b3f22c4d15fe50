"""Join the folds of a run: every sample judged by a network that was not trained on it.

    PARAMS=params/folder/discrimloss.yaml RUN=runs/photos bash examples/folds.sbatch \\
        dataset.root=photos dataset.test_fraction=0
    python -m utils.folds runs/photos

reads runs/photos/fold0, fold1, ... and writes into runs/photos

    out_of_sample.npz    index [N], probabilities [N, C] (in a regression predicted [N]), fold [N]
    samples.npz          a row per sample, with all scores of utils.scores that there are
    suspects.csv         the most suspicious labels, as a single run lists them
    folds.json           which runs these are, and how well the order tells wrong labels from right

Scores that are kept while a sample is trained on, the method's own too, are averaged over the other
folds.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from utils import scores
from utils.command_line import add_places, moved
from utils.config import differences
from utils.detection import measure_detection, sample_table
from utils.errors import UserError
from utils.escapes import printable
from utils.evaluation import COLUMNS
from utils.exports import write_list
from utils.files import atomic_write, read_arrays, write_arrays
from utils.judged import JOINED, judge
from utils.run_state import finished_config, read_config

FREE = ("run_dir", "validation.fold")


def check_own(directory: Path):
    """Raise UserError if a run of its own lies in the directory, whose files would be replaced."""
    if (directory / "config.yaml").exists():
        raise UserError(
            f"{directory} is the directory of a run, whose samples.npz and suspects.csv would be "
            f"replaced: move its fold0, fold1, ... into a folder of their own, and join them there"
        )


def read_folds(directory: Path) -> list[Path]:
    """The directories of all folds, in their order.

    Raises UserError if one is missing, unfinished, or of another configuration.
    """
    found = {}
    for path in sorted(directory.glob("fold*")):
        config = read_config(path)
        if config is not None and config["validation"].get("folds"):
            found[config["validation"]["fold"]] = path, config
    if not found:
        raise UserError(
            f"{directory} holds no runs fold0, fold1, ... with validation.folds: "
            f"examples/folds.sbatch runs them"
        )
    _, first = found[min(found)]
    missing = [fold for fold in range(first["validation"]["folds"]) if fold not in found]
    if missing:
        raise UserError(f"{directory} lacks fold {', '.join(map(str, missing))}: run that too")
    for path, _ in found.values():
        changed = differences(first, finished_config(path), FREE)
        if changed:
            raise UserError(f"{path} is a run of another configuration: {'; '.join(changed)}")
    return [found[fold][0] for fold in sorted(found)]


def join(folds: list[Path], ranking: str | None) -> dict[str, np.ndarray]:
    """A row per sample of all folds, by index, as samples.npz; with probabilities and fold.

    Args:
        ranking: the score that ranks them, or "method", that of the method; None for
            self_confidence, in a regression the loss.

    Raises UserError if a sample is in two folds, or the folds have other labels.
    """
    labels = {str(read_arrays(path / "noise.npz", ("sha256",))["sha256"]) for path in folds}
    if len(labels) > 1:
        raise UserError(f"{folds[0].parent}: the folds have other labels; run them all anew")
    held_out = [read_arrays(path / "held_out.npz") for path in folds]
    everything = {
        key: np.concatenate([part[key] for part in held_out])
        for key in set.intersection(*map(set, held_out))
    }
    everything["fold"] = np.concatenate(
        [np.full(len(part["index"]), fold) for fold, part in enumerate(held_out)]
    )
    order = np.argsort(everything["index"], kind="stable")
    everything = {key: values[order] for key, values in everything.items()}
    index = everything["index"]
    if len(np.unique(index)) != len(index):
        raise UserError(f"{folds[0].parent}: a sample is held out in two folds")
    trained = _of_training(folds, index)
    known = trained | {"mean_loss": trained.get("mean_loss", everything["loss"])}
    if "probabilities" in everything:
        known |= scores.out_of_sample(everything["probabilities"], everything["given"])
    method = known.pop("method", None)
    names = [*known, "method"]
    if ranking is not None and ranking not in names:
        raise UserError(f"--score must be one of {', '.join(names)}, got {ranking}")
    if ranking == "method":
        score = method
    elif ranking is None and "self_confidence" not in known:
        score = everything["loss"]
    else:
        score = scores.suspicion(ranking or "self_confidence", known)
    predicted = {key: everything[key] for key in COLUMNS if key in everything}
    predicted |= {"target": everything["given"], "index": np.arange(len(index))}
    table = sample_table(predicted, everything["true"], scores=known, score=score)
    if ranking is None and "self_confidence" in known:
        table["quality"] = known["self_confidence"]  # comparable, as all are out of sample
    part = np.array([f"fold {fold}" for fold in everything["fold"]])
    return table | {"index": index, "fold": everything["fold"], "part": part}


def _of_training(folds, index):
    """Scores of each sample, the mean over the folds that were trained on it; "method" is theirs.

    Those of a method are averaged as they are: all folds have the same scale.
    """
    sums, counts = {}, {}
    for path in folds:
        table = read_arrays(path / "samples.npz")
        # a file that could not be read just where it was held out is in no fold
        judged = np.isin(table["index"], index)
        rows = np.searchsorted(index, table["index"])
        named = {name: table[name] for name in scores.NAMES if name in table}
        for name, values in (named | {"method": table["score"]}).items():
            known = np.isfinite(values) & judged
            sums.setdefault(name, np.zeros(len(index)))[rows[known]] += values[known]
            counts.setdefault(name, np.zeros(len(index)))[rows[known]] += 1
    return {
        name: (total / np.where(counts[name] > 0, counts[name], np.nan)).astype(np.float32)
        for name, total in sums.items()
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, help="which holds fold0, fold1, ...")
    parser.add_argument("--score", help="that ranks the samples: one of utils.scores, or method")
    add_places(parser)
    options = parser.parse_args(arguments)
    try:
        folds = read_folds(options.directory)
        check_own(options.directory)
        table = join(folds, options.score)
        _write(options.directory, folds, table)
        judged = judge(options.directory, moved(options))
        write_list(options.directory / "suspects.csv", judged.table, judged.data)
    except (UserError, OSError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    print(
        printable(
            f"{options.directory}: {len(table['index']):,} samples judged by networks that"
            f" were not trained on them; see suspects.csv"
        )
    )
    return 0


def _write(directory, folds, table):
    whole = {key: table[key] for key in ("index", "fold", "predicted", "given")}
    if "probabilities" in table:
        whole["probabilities"] = table.pop("probabilities")
    for name, arrays in (("out_of_sample.npz", whole), ("samples.npz", table)):
        write_arrays(directory / name, **arrays)
    content = {
        "runs": [path.name for path in folds],
        "samples": len(table["index"]),
        "detection": measure_detection(table),
    }
    with atomic_write(directory / JOINED) as file:
        json.dump(content, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())
