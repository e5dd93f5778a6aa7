#!/usr/bin/env bash
# The main job as several processes of this machine, as on a cluster: to try things out, or with one
# GPU a process.
#
#   launch/local_cluster.sh PROCESSES [--dry-run] TRAIN ARGUMENTS...
#   launch/local_cluster.sh 2 --config configs/quickstart.py
#
# The output of process 0 is shown; lines of the others on stderr have their number before them.
# Ctrl-C and SIGTERM reach them all: they save and end. COIN_JAX_DEVICES=D gives each D (fake) CPU
# devices, COIN_JAX_GPUS=1 gives process K the GPU K. COIN_JAX_MODULE=coin_jax.evaluate runs
# another job.
set -euo pipefail

usage() {
  sed -n '2,13s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

[[ $# -ge 2 && $1 != -* ]] || usage
processes=$1
shift
if [[ ! $processes =~ ^[1-9][0-9]?$ ]]; then
  echo "local_cluster.sh: '$processes' processes; a number from 1 to 99" >&2
  exit 2
fi
dry_run=""
if [[ $1 == --dry-run ]]; then
  dry_run=yes
  shift
  [[ $# -ge 1 ]] || usage
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${COIN_JAX_VENV:-.venv}/bin/python
[[ -x $python ]] || python=$(command -v python3 || true)
[[ -n $python ]] || { echo "local_cluster.sh: there is no python3 here" >&2 && exit 127; }

# A port that nobody listens on; between now and then another could take it, which is then said.
port=${COIN_JAX_PORT:-}
if [[ -z $port ]]; then
  port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
fi
export COIN_JAX_COORDINATOR=127.0.0.1:$port COIN_JAX_PROCESSES=$processes
if [[ -z ${COIN_JAX_GPUS:-} ]]; then
  export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
fi
if [[ -n ${COIN_JAX_DEVICES:-} ]]; then
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$COIN_JAX_DEVICES"
fi

command=("$python" -m "${COIN_JAX_MODULE:-coin_jax.train}" "$@")
if [[ -n $dry_run ]]; then
  for ((process = 0; process < processes; process++)); do
    echo "would run: COIN_JAX_COORDINATOR=$COIN_JAX_COORDINATOR COIN_JAX_PROCESSES=$processes" \
      "COIN_JAX_PROCESS=$process ${command[*]}"
  done
  exit 0
fi

numbers=()
for ((process = 0; process < processes; process++)); do
  export COIN_JAX_PROCESS=$process
  [[ -z ${COIN_JAX_GPUS:-} ]] || export JAX_LOCAL_DEVICE_IDS=$process
  if [[ $process == 0 ]]; then
    "${command[@]}" &
  else
    # In the background Ctrl-C is ignored: it comes as SIGTERM, from here.
    "${command[@]}" >/dev/null 2> >(sed -u "s/^/[$process] /" >&2) &
  fi
  numbers+=($!)
done
trap 'kill -TERM "${numbers[@]}" 2>/dev/null || true' INT TERM

# The first status that is not 0 is this command's: a process that failed ends the others.
status=0
for ((process = 0; process < processes; process++)); do
  ended=0
  while true; do
    wait "${numbers[process]}" && ended=0 || ended=$?
    kill -0 "${numbers[process]}" 2>/dev/null || break # else the wait was cut short by a signal
  done
  if [[ $status == 0 ]]; then status=$ended; fi
done
exit "$status"
