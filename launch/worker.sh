#!/usr/bin/env bash
# Installs and trains on one machine: a laptop, a GPU node, or each worker of a TPU VM.
#
#   launch/worker.sh cpu|cuda13|tpu [--dry-run] TRAIN ARGUMENTS...
#   launch/worker.sh tpu --config configs/flan_t5.py:xl --output /mnt/shared/runs
#
# The environment is .venv beside this project (COIN_JAX_VENV names another); it is made once.
# Run again after an interruption: training goes on from its last checkpoint.
set -euo pipefail

if [[ $# -lt 2 ]]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
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

run=()
if [[ $1 == --dry-run ]]; then
  run=(echo "would run:")
  shift
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
environment=${COIN_JAX_VENV:-.venv}
if [[ ! -f $environment/coin_jax.$accelerator ]]; then
  "${run[@]}" python3 -m venv "$environment"
  "${run[@]}" "$environment/bin/pip" install -r requirements.txt "$package"
  "${run[@]}" touch "$environment/coin_jax.$accelerator"
fi
if [[ ${#run[@]} -gt 0 ]]; then
  "${run[@]}" "$environment/bin/python" -m coin_jax.train "$@"
else
  exec "$environment/bin/python" -m coin_jax.train "$@" # signals reach training itself
fi
