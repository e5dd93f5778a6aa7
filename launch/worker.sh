#!/usr/bin/env bash
# Installs and trains on one machine: a laptop, a GPU node, or each worker of a TPU VM.
#
#   launch/worker.sh cpu|cuda13|tpu [--dry-run] TRAIN ARGUMENTS...
#   launch/worker.sh cpu|cuda13|tpu --install             makes the environment and no more
#   launch/worker.sh tpu --config configs/flan_t5.py:xl --output /mnt/shared/runs
#
# The environment is .venv beside this project (COIN_JAX_VENV names another); it is made once.
# Run again after an interruption: training goes on from its last checkpoint.
set -euo pipefail

if [[ $# -lt 2 ]]; then
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
accelerator=$1
shift
case $accelerator in
  cpu) package="jax" ;;
  cuda13) package="jax[cuda13]" ;;
  tpu) package="jax[tpu]" ;;
  *)
    echo "worker.sh: accelerator '$accelerator'; allowed are cpu, cuda13 and tpu" >&2
    exit 2
    ;;
esac

dry_run=""
if [[ $1 == --dry-run ]]; then
  dry_run=yes
  shift
fi
run() { if [[ -n $dry_run ]]; then echo "would run: $*"; else "$@"; fi; }

# TPU VMs come with Python 3.10, which is too old: uv then brings one, without root.
make_environment() {
  local python
  for python in python3 python3.13 python3.12 python3.11; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      run "$python" -m venv "$environment"
      return
    fi
  done
  run python3 -m pip install --user uv
  run python3 -m uv venv --seed --clear --python 3.12 "$environment"
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
environment=${COIN_JAX_VENV:-.venv}
if [[ ! -f $environment/coin_jax.$accelerator ]]; then
  make_environment
  run "$environment/bin/pip" install -r requirements.txt "$package"
  run touch "$environment/coin_jax.$accelerator"
fi
if [[ ${1:-} == --install ]]; then
  exit
elif [[ -n $dry_run ]]; then
  run "$environment/bin/python" -m coin_jax.train "$@"
else
  exec "$environment/bin/python" -m coin_jax.train "$@" # signals reach training itself
fi
