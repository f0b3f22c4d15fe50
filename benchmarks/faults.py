"""Does anything that goes wrong lose a result, hang, or end in a traceback? A table of faults.

    python -m benchmarks.faults                          all: about ten minutes on one core
    python -m benchmarks.faults --quick                  a tenth of the probes
    python -m benchmarks.faults --groups kills disk --seed 2

Prints and writes (--out results/faults.csv) a line for each group: the probes that were tried, how
many held, and which failed; the exit code is 1 if one did. ``--seed`` draws moments and damage.

Each probe is a process of its own, in a folder of its own. It is forked from this one, which has
imported PyTorch already: that takes longer than the run, of 20 epochs on digits.
"""

import argparse
import copy
import dataclasses
import errno
import fcntl
import hashlib
import io
import os
import pickle
import random
import resource
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import sklearn.datasets
import sklearn.metrics
import sklearn.mixture  # noqa: F401
import torch
import yaml

import main as program
from benchmarks.kill import content, is_same
from tests.fixtures import make_run
from utils import plots  # noqa: F401
from utils.epoch_log import commit
from utils.report import page  # noqa: F401

ROOT = Path(__file__).parents[1]
RUN = ["params/digits/discrimloss.yaml", "model=mlp", "model.hidden=[16]", "epochs=20"]
RUN += ["threads=1", "device=cpu", "schedule=StepLR", "schedule.step_size=5"]
LIMIT = 120  # seconds after which a process counts as hung
Probes = Iterator[tuple[str, bool]]


@dataclasses.dataclass
class Lab:
    """What all groups share: where they work, what they draw from, and how a run should end."""

    folder: Path
    generator: random.Random
    share: float  # of the probes to try
    undisturbed: Path = Path()
    result: dict = dataclasses.field(default_factory=dict)
    seconds: float = 0.0  # that the undisturbed run took
    number: int = 0

    def new(self) -> Path:
        """A path in the folder at which there is nothing."""
        self.number += 1
        return self.folder / str(self.number)

    def chosen(self, probes: list) -> list:
        """All of them, or as many as wanted, at random."""
        wanted = max(1, round(self.share * len(probes)))
        return probes if wanted == len(probes) else self.generator.sample(probes, wanted)

    def copy(self, directory: Path) -> Path:
        """A copy of a run's directory."""
        return Path(shutil.copytree(directory, self.new(), symlinks=True))


def begin(output: Path, function: Callable, *arguments) -> int:
    """Call a function in a child process, whose prints go to a file; its number."""
    process = os.fork()
    if process:
        return process
    try:
        with open(output, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            code = function(*arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def end(process: int) -> int | None:
    """The exit code of a child, minus the signal that ended it, or None if it had to be killed."""
    for _ in range(100 * LIMIT):
        finished, status = os.waitpid(process, os.WNOHANG)
        if finished:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def call(lab: Lab, function: Callable, *arguments) -> tuple[int | None, str]:
    """The exit code of a function in a process of its own, and all that it printed."""
    output = lab.new()
    code = end(begin(output, function, *arguments))
    return code, output.read_text(errors="backslashreplace")


def train(directory: Path, *overrides: str) -> int:
    return program.main([*RUN, f"run_dir={directory}", *overrides])


def command(module: str, *arguments: str):
    """What ``python -m`` does."""
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__")


def resumes(lab: Lab, directory: Path) -> bool:
    """Whether the same command ends with the result of the undisturbed run, to the last bit."""
    code, text = call(lab, train, directory)
    return code == 0 and "Traceback" not in text and is_same(content(directory), lab.result)


def complains(code: int | None, text: str) -> bool:
    """Whether a process has ended with an error for its user, and no more."""
    return code in (1, 2) and "error: " in text and "Traceback" not in text and "\x1b" not in text


def interrupted(lab: Lab, *overrides: str) -> Path:
    """The directory of a run that was stopped in the middle, with both its checkpoints."""
    directory = lab.new()
    process = begin(lab.new(), train, directory, *overrides)
    metrics = directory / "metrics.csv"
    while not metrics.exists() or metrics.read_text().count("\n") < 10:
        time.sleep(0.002)
    os.kill(process, signal.SIGTERM)
    if end(process) != 75 or not (directory / "checkpoint.previous.pt").exists():
        raise SystemExit("the run to be damaged was not stopped in its middle")
    return directory


# Groups of probes: each yields what was tried, and whether it held


def signals(lab: Lab) -> Probes:
    """SIGTERM and Ctrl-C at random moments; the run is resumed."""
    for number in lab.chosen([signal.SIGTERM, signal.SIGINT] * 15):
        yield from _stop(lab, number)


def kills(lab: Lab) -> Probes:
    """SIGKILL at random moments, a third of them while a checkpoint is being written."""
    for saving in lab.chosen([False, False, True] * 10):
        yield from _stop(lab, signal.SIGKILL, saving)


def _stop(lab, number, saving=False):
    directory, moment = lab.new(), lab.generator.uniform(0, lab.seconds)
    process = begin(lab.new(), train, directory)
    time.sleep(moment)
    deadline = time.monotonic() + lab.seconds
    while saving and time.monotonic() < deadline:
        if (directory / ".checkpoint.pt.tmp").exists():
            break
    os.kill(process, number)
    code = end(process)
    name = f"{number.name} after {moment:.2f} s{', or while saving' if saving else ''}"
    yield name, code in (0, 75, -number) and resumes(lab, directory)


class Code:
    """What a pickle runs when it is read: it makes a folder."""

    def __init__(self, function: Callable, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def codes(made: Path) -> list[Code]:
    """Several ways to make a folder."""
    return [
        Code(os.mkdir, str(made)),
        Code(os.system, f"mkdir {made}"),
        Code(eval, f"__import__('os').mkdir({str(made)!r})"),
        Code(subprocess.check_call, ["mkdir", str(made)]),
    ]


def with_checksum(state) -> bytes:
    """A checkpoint as a run writes it."""
    if not isinstance(state, bytes):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        state = buffer.getvalue()
    return state + hashlib.sha256(state).digest()


def checkpoints(lab: Lab) -> Probes:
    """The newest checkpoint is damaged, holds code, or does not fit: that before it is used."""
    run, made, generator = interrupted(lab), lab.new(), lab.generator
    whole = (run / "checkpoint.pt").read_bytes()
    state = torch.load(io.BytesIO(whole[:-32]), weights_only=True)
    damages = [("truncated", _truncated)] * 15 + [("bits", _flipped)] * 15
    damages += [("overwritten", _overwritten)] * 8
    contents = [b"", b"no checkpoint", bytes(len(whole)), whole + b"x", b"PK\3\4" * 100]
    damages += [("other content", lambda *_, other=other: other) for other in contents]
    for code in codes(made):
        for other in ({**state, "model": code}, code, pickle.dumps({**state, "log": code})):
            damages.append(("code", lambda *_, other=other: with_checksum(other)))
    damages += [("unfit", lambda *_: with_checksum(_mutated(state, generator)))] * 15
    for what, damage in lab.chosen(damages):
        directory = lab.copy(run)
        (directory / "checkpoint.pt").write_bytes(damage(whole, generator))
        yield what, resumes(lab, directory) and not made.exists()


def _truncated(content, generator):
    return content[: generator.randrange(len(content))]


def _flipped(content, generator):
    damaged = bytearray(content)
    for _ in range(generator.randint(1, 8)):
        damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
    return bytes(damaged)


def _overwritten(content, generator):
    start = generator.randrange(len(content))
    chunk = generator.randbytes(generator.randint(1, 500))[: len(content) - start]
    return content[:start] + chunk + content[start + len(chunk) :]


def _mutated(state, generator):
    """A state of which one value is missing, or of another type or shape."""
    state = copy.deepcopy(state)
    below, key = state, generator.choice(list(state))
    while isinstance(below[key], (dict, list)) and below[key] and generator.random() < 0.9:
        below = below[key]
        key = generator.choice(list(below) if isinstance(below, dict) else range(len(below)))
    optional = ("lr", "seen", "plain_pull", "maximize", "foreach", "differentiable", "fused")
    required = isinstance(below, dict) and key not in optional and not str(key).startswith("_")
    if required and generator.random() < 0.4:
        del below[key]
    else:
        below[key] = generator.choice(["text", torch.zeros(2, 3), {"a": 1}])
    return state


def disk(lab: Lab) -> Probes:
    """The disk is full at a random size of the files; then there is room again."""

    def limited(directory, size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return train(directory)

    for _ in lab.chosen(range(10)):
        directory, size = lab.new(), round(10 ** lab.generator.uniform(2, 4.7))
        code, text = call(lab, limited, directory, size)
        held = complains(code, text) or (code == 0 and "Traceback" not in text)
        yield f"no file above {size} bytes", held and resumes(lab, directory)
    for _ in lab.chosen(range(10)):
        room, size = lab.new(), lab.generator.randrange(8, 400)
        room.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(room)]
        if subprocess.run(mount, capture_output=True).returncode:
            return  # nobody but root may
        try:
            code, text = call(lab, train, room / "run")
            held = complains(code, text) or (code == 0 and "Traceback" not in text)
            subprocess.run(["mount", "-o", "remount,size=100m", str(room)], check=True)
            yield f"a disk of {size} kB", held and resumes(lab, room / "run")
        finally:
            subprocess.run(["umount", str(room)], check=True)


def starts(lab: Lab) -> Probes:
    """The same command twice within 10 ms: one trains, the other waits or is refused."""
    for _ in lab.chosen(range(10)):
        directory, pause = lab.new(), lab.generator.uniform(0, 0.01)
        outputs = [lab.new(), lab.new()]
        first = begin(outputs[0], train, directory)
        time.sleep(pause)
        second = begin(outputs[1], train, directory)
        ends = [
            (end(process), path.read_text())
            for process, path in zip((first, second), outputs, strict=True)
        ]
        held = any(code == 0 for code, _ in ends) and all(
            code == 0 or (code == 2 and "another process" in text) for code, text in ends
        )
        held = held and not any("Traceback" in text for _, text in ends)
        yield f"{1000 * pause:.1f} ms apart", held and is_same(content(directory), lab.result)


def locks(lab: Lab) -> Probes:
    """A file system without locks: a run is refused, and leaves nothing that is in the way."""
    for number in lab.chosen([errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL]):

        def without_locks(directory, number=number):
            def flock(*_):
                raise OSError(number, os.strerror(number))

            fcntl.flock = flock
            return train(directory)

        directory = lab.new()
        code, text = call(lab, without_locks, directory)
        held = complains(code, text) and "without locks" in text
        yield errno.errorcode[number], held and resumes(lab, directory)


RUN_FILES = ("config.yaml", "summary.json", "metrics.csv", "samples.npz", "test.npz", "failed.txt")
CONTENTS = (b"", b"null", b"[]", b"{", b"\x1b[2J\n", b"[" * 9999, b"\xff\xfe\0", b"9" * 999)
SPECIAL = ("fifo", "/dev/zero", "/etc/passwd")  # links, but for the first


def files(lab: Lab) -> Probes:
    """Report and status of a run with a damaged file, beside a whole one; and its resumption."""
    damages = (_truncated, _flipped, _overwritten, *CONTENTS, *SPECIAL)
    for name, how in lab.chosen([(name, how) for name in RUN_FILES for how in damages]):
        runs = lab.new()
        make_run(runs / "good", [90.0, 91.0])
        shutil.copytree(lab.undisturbed, runs / "evil")
        path = runs / "evil" / name
        if name == "failed.txt":
            (runs / "evil/summary.json").unlink()
            path.write_text("killed by SIGKILL\n")
        _damage(path, how, lab.generator)
        more = lab.generator.choice([[], ["--hard"], ["--html", str(lab.new())]])
        code, text = call(lab, command, "utils.report", str(runs), *more)
        held = code == 0 and "Plain" in text and "root:" not in text
        code, status = call(lab, command, "utils.sweep", "status", str(runs))
        held = held and code == 0 and "2 cells" in status and "root:" not in status
        held = held and not any(bad in text + status for bad in ("Traceback", "\x1b"))
        yield f"{name}, {_in_words(how)}", held
    run = interrupted(lab)
    names = ("config.yaml", "summary.json", "noise.npz", ".lock")
    for name, how in lab.chosen([(name, how) for name in names for how in (*CONTENTS, _flipped)]):
        directory = lab.copy(run)
        _damage(directory / name, how, lab.generator)
        code, text = call(lab, train, directory)
        held = complains(code, text) or (code == 0 and is_same(content(directory), lab.result))
        yield f"{name} of an interrupted run, {_in_words(how)}", held and "Traceback" not in text


def _damage(path, how, generator):
    whole = path.read_bytes()
    path.unlink()
    if how == "fifo":
        os.mkfifo(path)
    elif isinstance(how, str):
        path.symlink_to(how)
    else:
        path.write_bytes(how if isinstance(how, bytes) else how(whole, generator))


def _in_words(how):
    return how.__name__.strip("_") if callable(how) else repr(how)[:20]


KEYS = ("optimizer.lr", "epochs", "batch_size", "seed", "noise.fraction", "noise.kind", "loss.q")
KEYS += ("loss.beta", "model.hidden", "device", "threads", "task", "loss", "schedule", "targets")
KEYS += ("validation.fraction", "dataset.selection.history", "no.such.key", "")
VALUES = ("nan", "-inf", "-1", "9" * 400, "1e999", "''", "[1, {a: b}]", "{a: {b: [c]}}", "a: b: c")
VALUES += ("!!python/object/apply:os.mkdir [MADE]", "\x1b[2J", "../../etc/passwd", "$(mkdir MADE)")
VALUES += ("&a [*a]", "*a", "[" * 500, "2024-01-01", "0x" + "f" * 5000, "yes", "\ud800")


def values(lab: Lab) -> Probes:
    """Values that nobody wants, on the command line and in YAML: in order, or refused in words."""
    probes = [(key, value, where) for key in KEYS for value in VALUES for where in (True, False)]
    for key, value, in_file in lab.chosen(lab.generator.sample(probes, 150)):
        directory, made, params = lab.new(), lab.new(), lab.new().with_suffix(".yaml")
        value = value.replace("MADE", str(made))
        settings = {"base": str(ROOT / RUN[0]), "run_dir": str(directory), "epochs": 1}
        first, _, inner = key.partition(".")
        settings.pop(first if in_file else "", None)
        text, overrides = yaml.safe_dump(settings), [f"{key}={value}"]
        if in_file:
            line = f"{first}: {{{inner}: {value}}}" if inner else f"{first}: {value}"
            text, overrides = f"{text}{line}\n", []
        params.write_text(text, errors="surrogatepass")
        code, text = call(lab, program.main, [str(params), *overrides])
        held = complains(code, text) or (code == 0 and "Traceback" not in text)
        held = held and not made.exists() and (code != 2 or not directory.exists())
        yield f"{key}={value[:30]!r}{' in YAML' if in_file else ''}", held


def foreign_code(lab: Lab) -> Probes:
    """Pickles in arrays and tags in YAML, wherever a file is read: never run, and named."""
    made = lab.new()
    for number, hidden in enumerate(codes(made)):
        path = lab.new().with_suffix(".npz")
        array = np.array([hidden], object)
        np.savez(path, given=array, labels=array, given_sha256=array)
        history = lab.new()
        shutil.copytree(lab.undisturbed, history)
        np.save(history / "losses.npy", array)
        selection = f"{{history: {history}/losses.npy}}"
        for overrides in (
            [f"noise.kind=file:{path}"],
            [f"targets={path}"],
            ["loss=Plain", f"dataset.selection={selection}"],
            ["loss=ForwardCorrection", f"loss.transition={path}"],
        ):
            directory = lab.new()
            held = complains(*call(lab, train, directory, *overrides)) and not made.exists()
            yield f"code {number} for {overrides[-1].partition('=')[0]}", held
    tag = f'!!python/object/apply:os.mkdir ["{made}"]'
    run = interrupted(lab)
    (run / "config.yaml").write_text(f"seed: {tag}\n")
    yield "tag in config.yaml", complains(*call(lab, train, run)) and not made.exists()
    log = lab.new()
    make_run(log / "good", [90.0, 91.0])
    held = call(lab, command, "utils.report", str(log), "--log", str(log / "log"))[0] == 0
    (log / "log/configs.yaml").write_text(f"a: {tag}\n")
    code, text = call(lab, command, "utils.report", str(log))
    yield "tag in a compact log", held and code == 0 and "Plain" in text and not made.exists()
    for number, condition in enumerate(
        (f"@pd.io.common.os.mkdir('{made}') == 0", f"method.to_csv('{made}') == 0")
    ):
        marked = lab.new()
        marked.write_text(
            f'<!-- report {log}/good --where "{condition}" -->\n<!-- end of report -->\n'
        )
        held = (
            complains(*call(lab, command, "utils.report", "--update", str(marked)))
            and not made.exists()
        )
        yield f"condition {number} in markdown", held


def quoting(lab: Lab) -> Probes:
    """Launchers in folders with spaces, quotes and $() in their names run what they say."""
    for name in lab.chosen(["a b", "it's", 'say "x" & *', "$(mkdir made)", "`mkdir made`;#"]):
        folder = lab.new() / name
        folder.mkdir(parents=True)
        launcher, run = folder / "mine.sbatch", folder / "run"
        line = shlex.join([*RUN, "epochs=1", f"run_dir={run}"])
        launcher.write_text(
            f"source {ROOT}/examples/common.sh\nmine() {{ cat <<'END'\n{line}\nEND\n}}\n"
            'sweep mine "$@"\n'
        )
        options = {"cwd": folder, "env": os.environ | {"PYTHON": sys.executable}, "text": True}
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        dry = subprocess.run(["bash", str(launcher), "--dry-run"], **options)
        wet = subprocess.run(["bash", str(launcher)], **options)
        (ROOT / "logs/mine_bash_0.out").unlink(missing_ok=True)
        held = dry.returncode == wet.returncode == 0 and (run / "samples.npz").exists()
        held = held and shlex.split(dry.stdout.partition(": ")[2])[2:] == shlex.split(line)
        made = [*ROOT.glob("made"), *lab.folder.rglob("made")]
        yield repr(name), held and not made


GROUPS = (signals, kills, checkpoints, disk, starts, locks, files, values, foreign_code, quoting)


def prepare(lab: Lab):
    """Train undisturbed, twice: the first run fills the file cache."""
    for _ in range(2):
        directory, start = lab.new(), time.monotonic()
        exit_code, text = call(lab, train, directory)
        lab.seconds = time.monotonic() - start
        if exit_code != 0:
            raise SystemExit(f"the undisturbed run has failed:\n{text}")
    lab.undisturbed, lab.result = directory, content(directory)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [group.__name__ for group in GROUPS]
    parser.add_argument("--groups", nargs="+", choices=names, default=names)
    parser.add_argument("--seed", type=int, default=1, help="of moments and damage")
    parser.add_argument("--quick", action="store_true", help="a tenth of the probes")
    parser.add_argument("--out", type=Path, metavar="FILE.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a thread pool would not survive a fork
    rows = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        lab = Lab(Path(folder), random.Random(options.seed), 0.1 if options.quick else 1)
        prepare(lab)
        for group in GROUPS:
            if group.__name__ not in options.groups:
                continue
            lab.generator.seed(f"{options.seed} {group.__name__}")
            start, results = time.monotonic(), []
            for name, held in group(lab):
                results.append(held)
                if not held:
                    print(f"failed: {group.__name__}: {name}", flush=True)
            seconds = round(time.monotonic() - start)
            rows.append((group.__name__, len(results), sum(results), seconds))
            print(f"{rows[-1][0]}: {rows[-1][2]} of {rows[-1][1]} held, {seconds} s", flush=True)
    table = pd.DataFrame(rows, columns=["group", "probes", "held", "seconds"])
    print(table.to_string(index=False))
    if options.out:
        table.assign(seed=options.seed, commit=commit()).to_csv(options.out, index=False)
    return 0 if (table.probes == table.held).all() else 1


if __name__ == "__main__":
    sys.exit(main())
