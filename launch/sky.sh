#!/usr/bin/env bash
# shellcheck source-path=SCRIPTDIR
# Trains through SkyPilot, which looks for the cheapest machines and brings the training back after
# a preemption.
#
#   launch/sky.sh run --env my.env --accelerators H100:8 -- --config configs/flan_t5.py:xl
#   launch/sky.sh run --env my.env --accelerators tpu-v5litepod-16 -- ...
#   launch/sky.sh logs | status  --env my.env
#   launch/sky.sh delete NAME    --env my.env
#
# The accelerators are named as `sky show-gpus --all` names them. `delete` ends the job and gives
# its machines back; what was saved stays in the bucket, and `run` goes on from there. --dry-run
# prints what would be done. Ctrl-C while logs are shown leaves the training running.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse_arguments "$@"
[[ $action == delete || -z $typed_name ]] || fail "$typed_name: not an argument of $action" 2
need NAME
COIN_JAX_SHARED_FOLDER=/mnt/coin_jax # as in sky.yaml
need_program sky "pip install 'skypilot[gcp]', or another of its clouds"
cd "$project_folder"

case $action in
  run)
    need SHARED ACCELERATORS
    need_train_arguments
    [[ $COIN_JAX_SHARED == *://* ]] || fail "COIN_JAX_SHARED=$COIN_JAX_SHARED: SkyPilot mounts buckets" 2
    output_in_shared_folder
    lines=$(printf '%s\n' "${train_arguments[@]}")
    [[ $(wc -l <<<"$lines") -eq ${#train_arguments[@]} ]] ||
      fail "a training argument holds a line break" 2
    flags=(--name "$COIN_JAX_NAME" --gpus "$COIN_JAX_ACCELERATORS" --num-nodes "${COIN_JAX_NODES:-1}")
    accelerator=cuda13
    if [[ $COIN_JAX_ACCELERATORS == tpu-* ]]; then accelerator=tpu; fi
    [[ -z ${COIN_JAX_INFRA:-} ]] || flags+=(--infra "$COIN_JAX_INFRA")
    if [[ $COIN_JAX_CAPACITY == spot ]]; then flags+=(--use-spot); else flags+=(--no-use-spot); fi
    act sky jobs launch launch/sky.yaml "${flags[@]}" --detach-run --yes \
      --env "COIN_JAX_ACCELERATOR=$accelerator" --env "COIN_JAX_BUCKET=$COIN_JAX_SHARED" \
      --env "COIN_JAX_ARGUMENTS=$lines"
    follow act sky jobs logs --name "$COIN_JAX_NAME" --follow
    ;;
  logs) follow act sky jobs logs --name "$COIN_JAX_NAME" --follow ;;
  status) act sky jobs queue ;;
  delete)
    need_typed_name
    act sky jobs cancel --name "$COIN_JAX_NAME" --yes
    ;;
  *) fail "'$action': allowed are run, logs, status and delete" 2 ;;
esac
