#!/usr/bin/env bash
# A SLURM of one node with 2 CPUs for a test, as root on Debian or Ubuntu:
#   slurm.sh start|stop DIRECTORY
# DIRECTORY/slurm.conf is its configuration: export it as SLURM_CONF. Jobs in the partition "urgent"
# preempt those in "main".
#
# Daemons and jobs live in a PID namespace of their own. Without cgroups slurmd finds the processes
# of a job by itself; if it is mistaken, it signals nobody outside. And one signal ends them all.
set -euo pipefail
directory=$(realpath -m "$2")
export SLURM_CONF=$directory/slurm.conf

again() {                                 # again SECONDS COMMAND...: until it succeeds
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do ((SECONDS < end)) || return 1; sleep 0.1; done
}

stop() {
  if [[ -s $directory/pid ]]; then kill -KILL "$(<"$directory/pid")" 2>/dev/null || true; fi
  if [[ -e $directory/munged ]]; then kill "$(</run/munge/munged.pid)" || true; fi
  rm -f "$directory"/{pid,munged}
}
if [[ $1 == stop ]]; then stop; exit; fi

mkdir -p "$directory"/{state,spool}
missing=0
for program in slurmctld slurmd sbatch munged; do command -v $program || missing=1; done >/dev/null
if ((missing)); then
  install=(apt-get install -y -q --no-install-recommends slurmctld slurmd slurm-client munge)
  export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1      # the packages are not to start anything
  "${install[@]}" || { apt-get update -q && "${install[@]}"; }
fi >"$directory/apt.log" 2>&1

if ! munge -n 2>/dev/null | unmunge >/dev/null 2>&1; then
  [[ -s /etc/munge/munge.key ]] || (umask 077 && head -c 1024 /dev/urandom >/etc/munge/munge.key)
  chown munge:munge /etc/munge /etc/munge/munge.key
  install -d -o munge -g munge /run/munge
  install -d -o munge -g munge -m 700 /var/lib/munge /var/log/munge
  setpriv --reuid=munge --regid=munge --clear-groups munged
  touch "$directory/munged"
  again 10 sh -c 'munge -n | unmunge'
fi

host=$(uname -n)
host=${host%%.*}
# If the machine's name is 127.0.0.1. With Debian's 127.0.1.1 srun would hang.
local_only=''
if [[ $(getent ahostsv4 "$(uname -n)" | awk '{print $1; exit}') == 127.0.0.1 ]]; then
  local_only=CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
fi
# cred_expire is also how long a requeued job waits
cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
$local_only
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=/run/munge/munge.socket.2,cred_expire=5
StateSaveLocation=$directory/state
SlurmdSpoolDir=$directory/spool
SlurmctldPidFile=$directory/slurmctld.pid
SlurmdPidFile=$directory/slurmd.pid
SlurmctldLogFile=$directory/slurmctld.log
SlurmdLogFile=$directory/slurmd.log
MailProg=/bin/true
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
KillWait=30
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Default=YES PriorityTier=1 Nodes=$host MaxTime=1-0 State=UP
PartitionName=urgent PriorityTier=100 PreemptMode=OFF Nodes=$host MaxTime=1-0 State=UP
CONF

setsid unshare --pid --fork --mount-proc --kill-child=SIGKILL \
  bash -c 'slurmctld -D & slurmd -D & wait' </dev/null >"$directory/daemons.log" 2>&1 &
echo $! >"$directory/pid"
if ! again 60 sh -c 'sinfo -h -o %T | grep -qx "idle"'; then
  stop
  tail -n 5 "$directory"/*.log >&2
  exit 1
fi
