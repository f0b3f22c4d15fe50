# What the launchers here have in common: each sources this file.
#
# A launcher is a list of cells, a line each: the arguments of main.py, or of several runs in
# order, joined by " && "; "-m utils.mentor ..." before a run prepares it. LAUNCHER is its path:
#   bash LAUNCHER --submit     submit them to SLURM as an array, a cell a task, 8 at a time
#   sbatch LAUNCHER            run them in one SLURM job, one after another
#   bash LAUNCHER              run them on this machine, one after another
#
#   --cells 3-7,9      only these            --only missing     what has no result and has not
#   --jobs 2           two at a time                            failed; --only failed
#   --dry-run          print the commands    --status           what has become of each, and how
#   --help             this                                     to run the rest
#   key=value          for every run
#   --submit ... --array=%4 --gres=gpu:1     4 at a time; other options of sbatch, --name=value
#
# No launcher names a GPU, partition or account: give them to sbatch or --submit, or set
# SBATCH_GRES, SBATCH_PARTITION and SBATCH_ACCOUNT. Call sbatch in the root of the repository. Task
# i of an array runs cell OFFSET + i.
#
# Environment: METHODS, FRACTIONS, SEEDS, KIND (of noise) choose other cells; PROCESSES: of a cell
# on each machine, one for each of its GPUs; MAX_RESTARTS (100): how often SLURM may put a job back
# into the queue; PYTHON: which one.
set -euo pipefail

# The #SBATCH lines are in each launcher, since sbatch reads no other file. Two minutes before its
# time limit a job gets SIGUSR1: it saves, and goes back into the queue.
launcher=$(realpath "${BASH_SOURCE[1]}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
launcher=${launcher#"$PWD"/}
if [[ -z ${PYTHON:-} ]]; then
  PYTHON=$(command -v python || echo python3)
  if [[ -x .venv/bin/python ]]; then PYTHON=.venv/bin/python; fi
fi

# METHODS x FRACTIONS x SEEDS of DATASET. Seeds are outermost: more of them leave the numbers of
# the other cells as they are.
grid() {
  local seed fraction method kind=${KIND:+ noise.kind=$KIND}
  for seed in $SEEDS; do for fraction in $FRACTIONS; do for method in $METHODS; do
    echo "params/$DATASET/$method.yaml$kind noise.fraction=$fraction seed=$seed"
  done; done; done
}

# manual FILE: the comment from its first empty line on
manual() { sed -n '/^#$/,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$1"; }

# sweep LISTING ARGUMENTS...: run the cells that the function LISTING writes
sweep() {
  local listing=$1
  shift
  local cells
  cells=$("$listing")
  if [[ " $* " == *" --help "* ]]; then
    manual "$launcher"
    manual examples/common.sh
    exit 0
  fi
  trap '' USR1 TERM INT                   # until the launcher proper listens to them
  exec "$PYTHON" -m utils.sweep run --launcher "$launcher" --list /dev/fd/3 "$@" 3<<<"$cells"
}
