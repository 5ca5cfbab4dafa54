#!/bin/sh
# A batch on a real Slurm: starts a controller and a node on this machine, submits an array of 8 tasks, requeues one in
# the middle, compares every frame with an undisturbed run, and stops all that it has started.
#
#   apt-get install --no-install-recommends slurm-wlm slurm-client munge
#   cargo build --profile quick && sh tests/slurm.sh target/quick/sora
#
# Must run as root: the daemons want it.
set -eu
sora=$(realpath "${1:-target/quick/sora}")
for program in munged slurmctld slurmd sbatch squeue scontrol; do
  command -v "$program" >/dev/null || { echo "missing: $program" >&2; exit 1; }
done
work=$(mktemp -d)
chmod 755 "$work"
cd "$work"
mkdir state spool log
begin=$(date +%s)

stop() {
  scontrol shutdown >/dev/null 2>&1 || true
  for _ in $(seq 50); do
    [ -f "$work/slurmctld.pid" ] || [ -f "$work/slurmd.pid" ] || break
    sleep 0.1
  done
  for name in slurmd slurmctld munged; do
    [ -f "$work/$name.pid" ] && kill "$(cat "$work/$name.pid")" 2>/dev/null || true
  done
  if [ "${keep:-}" ]; then echo "left for a look: $work" >&2; else
    # The daemons may still be writing their last lines.
    for _ in 1 2 3 4 5; do rm -rf "$work" 2>/dev/null && break; sleep 1; done
  fi
}
trap stop EXIT

dd if=/dev/urandom of=munge.key bs=128 count=1 2>/dev/null
chmod 400 munge.key
munged --key-file="$work/munge.key" --socket="$work/munge.socket" --pid-file="$work/munged.pid" \
  --log-file="$work/log/munged.log" --seed-file="$work/munge.seed" --force

cat > slurm.conf <<CONF
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket
CryptoType=crypto/munge
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/log/slurmctld.log
SlurmdLogFile=$work/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=5
RequeueExit=99
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000
PartitionName=all Nodes=localhost Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF="$work/slurm.conf"
slurmctld -c
slurmd -c -N localhost
for _ in $(seq 50); do
  sinfo --noheader --format=%T 2>/dev/null | grep -q idle && break
  sleep 0.2
done
sinfo

cat > jobs.toml <<JOBS
size = "64x64"
frames = 9
steps = ${STEPS:-40}
output = "{n:03}.y4m"
[[job]]
prompt = "a fox"
seed = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
JOBS
"$sora" batch jobs.toml --folder calm --progress none >/dev/null
"$sora" batch submit jobs.toml --slurm --tasks 8 --partition all --threads 1 --checkpoint-every 2 > id
id=$(cat id)

# Requeue a task while it is in the middle of a job.
task=""
for _ in $(seq 200); do
  task=$("$sora" batch status jobs.toml --json | python3 -c '
import json, re, sys
for job in json.load(sys.stdin)["jobs"]:
    named = re.search(r"slurm-\d+_(\d+)", job["worker"] or "")
    if job["state"] == "running" and named and 4 < job["steps_done"] < job["steps"] - 4:
        print(named[1], job["n"])
        break') && [ "$task" ] && break
  sleep 0.1
done
[ "$task" ] || { echo "no task was seen at work" >&2; keep=1; exit 1; }
number=${task#* }
task=${task% *}
scontrol requeue "${id}_$task"
echo "requeued task $task in the middle of job $number"
"$sora" batch status jobs.toml
# Slurm holds a requeued task back for a while; nothing here needs that.
sleep 3
scontrol update jobid="${id}_$task" StartTime=now 2>/dev/null || true

for _ in $(seq 600); do
  [ -z "$(squeue --noheader --jobs "$id" 2>/dev/null)" ] && break
  scontrol update jobid="${id}_$task" StartTime=now 2>/dev/null || true
  sleep 0.5
done
"$sora" batch status jobs.toml --all
"$sora" batch status jobs.toml | grep -q "^16 of 16 jobs are done$" || { keep=1; cat jobs/.sora/slurm-*.log >&2; exit 1; }
for file in calm/*.y4m; do
  cmp "$file" "jobs/$(basename "$file")" || { keep=1; exit 1; }
done
[ "$(ls jobs/*.y4m | wc -l)" = 16 ]
# The job that was cut was taken twice, and its second worker began where the first had saved.
"$sora" batch status jobs.toml --json | python3 -c '
import json, sys
number = int(sys.argv[1])
claims = {job["n"]: job["claims"] for job in json.load(sys.stdin)["jobs"]}
assert claims[number] == 2, claims
assert all(count == 1 for n, count in claims.items() if n != number), claims' "$number"

# Cancel works through Slurm, too.
"$sora" batch submit jobs.toml --slurm --tasks 2 --partition all --threads 1 --folder cancelled > id
sleep 2
"$sora" batch cancel jobs.toml --folder cancelled
for _ in $(seq 50); do
  [ -z "$(squeue --noheader --jobs "$(cat id)" 2>/dev/null)" ] && break
  sleep 0.2
done
[ -z "$(squeue --noheader --jobs "$(cat id)" 2>/dev/null)" ] || { echo "the array still runs" >&2; exit 1; }
echo "slurm: all is well, $(($(date +%s) - begin)) s"
