#!/usr/bin/env bash
# shellcheck source-path=SCRIPTDIR
# Trains on one machine with NVIDIA GPUs, all of them, in the background of any terminal.
#
#   launch/gpu.sh run [--name NAME] [--image IMAGE] -- --config configs/flan_t5.py:large
#   launch/gpu.sh status | stop | logs [--name NAME]
#
# With --image (built from Dockerfile) in a container, else in .venv beside this project. `run`
# starts, or goes on from the last checkpoint, and follows the log; it follows only where the
# training runs already. Ctrl-C leaves it running, `stop` saves and stops it. --dry-run prints what
# would be done. For several machines see slurm.sbatch, gke.sh and sky.sh.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse_arguments "$@"
[[ -z $typed_name ]] || fail "$typed_name: not an argument of $action" 2
: "${COIN_JAX_NAME:=coin-jax}"
job=$project_folder/runs/.$COIN_JAX_NAME
machine=$launch_folder/machine.sh

case $action in
  run)
    need_train_arguments
    need_program nvidia-smi "it comes with the NVIDIA driver; launch/worker.sh cpu trains without GPUs"
    act nvidia-smi --query-gpu=name,memory.total --format=csv,noheader ||
      fail "the driver finds no GPU that works; nvidia-smi says why"
    command=("$launch_folder/worker.sh" cuda13)
    if [[ -n ${COIN_JAX_IMAGE:-} ]]; then
      need_program docker "https://docs.docker.com/engine/install, with the NVIDIA container toolkit"
      act mkdir -p "$project_folder/runs"
      command=(docker run --rm --init --gpus all --ipc=host --name "$COIN_JAX_NAME"
        --stop-timeout "$COIN_JAX_GRACE_SECONDS" --user "$(id -u):$(id -g)"
        --volume "$project_folder/runs:/coin_jax/runs" "$COIN_JAX_IMAGE")
    fi
    if [[ -z $dry_run && $("$machine" state "$job") == "coin_jax-job running" ]]; then
      say "it runs already; following"
    else
      act "$machine" start "$job" "${command[@]}" "${train_arguments[@]}"
    fi
    follow act "$machine" follow "$job"
    ;;
  logs) follow act "$machine" follow "$job" ;;
  status) act "$machine" state "$job" ;;
  stop) act "$machine" stop "$job" "$COIN_JAX_GRACE_SECONDS" ;;
  *) fail "'$action': allowed are run, logs, status and stop" 2 ;;
esac
