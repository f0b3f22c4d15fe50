"""Random search for hyper-parameters, which no test image takes part in: as many trials a method.

    python -m utils.search trials mnist permute 0.4 "plain gce" 8
        the cells of a sweep: 8 trials of each method
    python -m utils.search chosen mnist permute 0.4 "plain gce" 8 "11 12"
        the best of each, on all training samples, 2 seeds
    python -m utils.search chosen mnist pair 0.4 "plain gce" 8 "11 12" --under permute-0.4
        the best of a search under another noise; with --searched trials.csv from its table
    python -m utils.search table runs/search/mnist --out trials.csv --figure trials.png
        every trial

examples/search.sbatch runs the first two. A trial trains on 90 % of the training samples. It is
judged after the last epoch by its accuracy on the other 10 %, with their labels as they are, noise
and all. What it is drawn from is in spaces.py, and in trials.py what the table says of all of them.
"""

import argparse
import sys
from pathlib import Path

from utils.config import resolve
from utils.errors import UserError
from utils.escapes import printable
from utils.sweep.spaces import draw
from utils.sweep.trials import (
    RECORDING,
    best_trial,
    describe_resamples,
    read_trials,
    recording_of,
    resample,
    trials_to_choose_from,
    with_chosen,
    with_shares,
)

# Of all trials: labels, split and initialisation are the same. It is not one of the reported seeds.
SEED = 101


def cell(dataset: str, method: str, trial: int, directory: Path, common: list[str]) -> str:
    """A line of a sweep: the arguments of main.py, which writes a trial to ``directory``.

    Before a run of RSL is its recording run, at the same rates.
    """
    overrides = draw(dataset, method, trial)
    if method != "rsl":
        run = [f"params/{dataset}/{method}.yaml", *common, *overrides, f"run_dir={directory}"]
        return " ".join(run)
    recording = recording_of(directory)
    rates = [text for text in overrides if text.startswith("optimizer.")]
    record = [f"params/{dataset}/plain.yaml", *common, *rates]
    # a report on the whole folder is to tell it from cross-entropy at the rates chosen for that
    record += ["record_losses=true", f"label={RECORDING}", f"run_dir={recording}"]
    select = [f"params/{dataset}/rsl.yaml", *common, *overrides]
    select += ["dataset.selection.noise_rate=estimate"]
    select += [f"dataset.selection.history={recording}/losses.npy", f"run_dir={directory}"]
    return f"{' '.join(record)} && {' '.join(select)}"


def cells_of_stage(
    stage: str,
    dataset: str,
    kind: str,
    fractions: list[str],
    methods: list[str],
    trials: int,
    seeds: list[int] = (),
    under: str | None = None,
    searched: Path | None = None,
    runs: Path = Path("runs"),
) -> list[str]:
    """The lines of a sweep of one stage, "trials" or "chosen".

    Args:
        under: the folder of the trials to choose from, if they were of another noise.
        searched: where the trials are, if not in <runs>/search: a folder, or a file of ``table``.
        runs: the folder of search/ and chosen/.

    Raises:
        UserError: the methods do not share one protocol; or, of "chosen", a trial is not over.
    """
    check_protocols(dataset, methods)
    own, repeated = (runs / name / dataset for name in ("search", "chosen"))
    source = searched or own
    if stage == "chosen":
        table = trials_to_choose_from(source, dataset, methods)
    lines = []
    for fraction in fractions:
        noise = [f"noise.kind={kind}", f"noise.fraction={fraction}", "noise.seed=null"]
        noise.append("validation.clean=false")
        folder = f"{kind.replace(':', '-')}-{fraction}"
        if stage == "trials":
            common = [*noise, f"seed={SEED}", "validation.fraction=0.1"]
            lines += [
                cell(dataset, method, trial, own / method / folder / f"trial{trial}", common)
                for trial in range(trials)
                for method in methods
            ]
            continue
        best = {
            method: best_trial(table, source, method, under or folder, trials) for method in methods
        }
        folder += f"-of-{under}" if under else ""
        for seed in seeds:
            common = [*noise, f"seed={seed}", "validation.fraction=0"]
            for method in methods:
                directory = repeated / method / folder / f"seed{seed}"
                lines.append(cell(dataset, method, best[method], directory, common))
    return lines


def check_protocols(dataset: str, methods: list[str]):
    """Raises UserError if the methods differ in what all must share to be compared.

    And if nothing here is made for the task: the best trial is the one of the highest accuracy.
    """
    protocols = {}
    for method in methods:
        config = resolve(f"params/{dataset}/{method}.yaml", [])
        if config["task"] != "classification":
            raise UserError(
                f"a search chooses by accuracy, and params/{dataset}/{method}.yaml is of the task "
                f"{config['task']}"
            )
        shared = ("model", "epochs", "batch_size", "clip_norm", "schedule")
        protocols[method] = {key: config[key] for key in shared}
        protocols[method]["optimizer"] = config["optimizer"]["name"]
    different = [method for method in methods if protocols[method] != protocols[methods[0]]]
    if different:
        raise UserError(
            f"{', '.join(different)} of params/{dataset} differ from {methods[0]} in model, "
            f"epochs, batch_size, clip_norm, schedule or optimizer: there is nothing to compare"
        )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for stage in ("trials", "chosen"):
        command = commands.add_parser(stage)
        command.add_argument("dataset")
        command.add_argument("kind", help="of noise")
        command.add_argument("fractions", type=str.split)
        command.add_argument("methods", type=str.split)
        command.add_argument("trials", type=int)
        command.add_argument(
            "--runs", type=Path, default=Path("runs"), help="the folder of search/ and chosen/"
        )
        if stage == "chosen":
            command.add_argument("seeds", type=lambda text: [int(seed) for seed in text.split()])
            command.add_argument("--under", metavar="NOISE", help="of the search: permute-0.4")
            command.add_argument(
                "--searched", type=Path, metavar="FILE", help="which table --out wrote"
            )
    command = commands.add_parser("table")
    command.add_argument(
        "root", type=Path, help="runs/search/<dataset>, or a file that --out wrote"
    )
    command.add_argument("--first", type=int, metavar="N", help="of each method N trials alone")
    command.add_argument("--out", type=Path, metavar="FILE")
    command.add_argument("--figure", type=Path, metavar="FILE.png")
    options = vars(parser.parse_args(arguments))
    try:
        if options["command"] == "table":
            write_table(options["root"], options["out"], options["figure"], options["first"])
        else:
            print("\n".join(cells_of_stage(options.pop("command"), **options)))
    except (UserError, OSError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    return 0


def write_table(root: Path, out: Path | None, figure: Path | None, first: int | None):
    table = read_trials(root)
    if first is not None:
        table = with_chosen(table[table.trial < first].reset_index(drop=True))
    searches = {noise: resample(trials) for noise, trials in table.groupby("noise")}
    table = with_shares(table, searches)
    if out:
        table.to_csv(out, index=False, float_format="%.6g")
    if figure:
        from utils.sweep.figure import draw_trials  # matplotlib takes its time

        draw_trials(table, figure)
    print(printable(table.to_string(index=False)))
    print(printable(describe_resamples(table, searches)))
