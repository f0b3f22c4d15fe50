# What all launchers here have in common: sourced by them, with $root set to the root of the repository.
#
# A launcher writes a list of cells, a line each: the arguments of main.py, or of several runs in order, joined by " && ".
# Under sbatch task i of the array runs cell OFFSET + i. Under bash it loops over all of them:
#   --cells 3-7,9      only these            --only missing     what has no result and has not failed; --only failed
#   --jobs 2           two at a time         --dry-run          print the commands
#   --status           what has become of each, and how to run the rest
#   key=value          for every run         --help             this
# Environment: METHODS, FRACTIONS, SEEDS, KIND (of noise); PROCESSES: how many a machine, for as many GPUs each cell gets;
# PYTHON: which one; MAX_RESTARTS (100): how often SLURM may put a task back into the queue.
set -euo pipefail

launcher=$(realpath "${BASH_SOURCE[1]}")
cd "$root"
root=$PWD
launcher=${launcher#"$root"/}
if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python
  if [[ -x .venv/bin/python ]]; then PYTHON=.venv/bin/python; fi
fi

# METHODS x FRACTIONS x SEEDS of DATASET. Seeds outermost: more of them leave the numbers of the other cells as they are.
grid() {
  local seed fraction method
  for seed in $SEEDS; do for fraction in $FRACTIONS; do for method in $METHODS; do
    echo "params/$DATASET/$method.yaml${KIND:+ noise.kind=$KIND} noise.fraction=$fraction seed=$seed"
  done; done; done
}

# sweep LISTING ARGUMENTS...: run the cells that the function LISTING writes
sweep() {
  local listing=$1
  shift
  local cells
  cells=$("$listing")
  if [[ " $* " == *" --help "* ]]; then
    sed -n '/^#$/,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$launcher"
    sed -n '/^# A launcher/,/^# PYTHON/s/^# \{0,1\}//p' examples/common.sh
    exit 0
  fi
  trap '' USR1 TERM INT                   # until the launcher proper listens to them
  exec "$PYTHON" -m utils.sweep run --launcher "$launcher" --list /dev/fd/3 "$@" 3<<<"$cells"
}
