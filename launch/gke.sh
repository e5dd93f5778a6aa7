#!/usr/bin/env bash
# shellcheck source-path=SCRIPTDIR
# Trains on GKE, on a TPU slice or on GPU nodes, as the JobSet of gke_jobset.yaml.
#
#   launch/gke.sh render --env my.env -- --config configs/flan_t5.py:xl      prints the JobSet
#   launch/gke.sh run    --env my.env -- --config configs/flan_t5.py:xl      applies it, follows it
#   launch/gke.sh logs [--worker N] | status | stop   --env my.env
#   launch/gke.sh resume --env my.env
#   launch/gke.sh delete NAME --env my.env
#
# `stop` suspends the JobSet: its pods save and end, and their nodes are free. `resume` goes on
# from the last checkpoint. Preempted and failed pods are the JobSet controller's to restart;
# nothing has to watch. --dry-run prints what would be done. Ctrl-C while logs are shown leaves the
# training running. The cluster needs JobSet: https://jobset.sigs.k8s.io/docs/installation
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

kube() {
  act kubectl ${COIN_JAX_CONTEXT:+"--context=$COIN_JAX_CONTEXT"} "--namespace=$COIN_JAX_NAMESPACE" "$@"
}

# yaml_list WORD...: on one line; JSON strings are YAML strings.
yaml_list() {
  local word line=""
  for word in "$@"; do
    [[ ! $word =~ [[:cntrl:]] ]] || fail "a training argument holds a line break or the like" 2
    word=${word//\\/\\\\}
    line+="${line:+, }\"${word//\"/\\\"}\""
  done
  printf '[%s]' "$line"
}

# describe_hosts: sets hosts, selector, devices and coordinator for a TPU slice or for GPU nodes.
describe_hosts() {
  need NAME IMAGE GKE_ACCELERATOR VOLUME_CLAIM
  local spot=""
  [[ $COIN_JAX_CAPACITY != spot ]] || spot=', cloud.google.com/gke-spot: "true"'
  if [[ -n ${COIN_JAX_TOPOLOGY:-} ]]; then
    need CHIPS_PER_HOST
    [[ $COIN_JAX_TOPOLOGY =~ ^[0-9]+x[0-9]+(x[0-9]+)?$ ]] ||
      fail "COIN_JAX_TOPOLOGY=$COIN_JAX_TOPOLOGY: chips along each axis, for example 4x4 or 2x2x4" 2
    local chips=$((${COIN_JAX_TOPOLOGY//x/*}))
    ((COIN_JAX_CHIPS_PER_HOST > 0 && chips % COIN_JAX_CHIPS_PER_HOST == 0)) ||
      fail "$chips chips ($COIN_JAX_TOPOLOGY) cannot be shared out by \
COIN_JAX_CHIPS_PER_HOST=$COIN_JAX_CHIPS_PER_HOST" 2
    hosts=$((chips / COIN_JAX_CHIPS_PER_HOST))
    selector="cloud.google.com/gke-tpu-accelerator: $COIN_JAX_GKE_ACCELERATOR"
    selector+=", cloud.google.com/gke-tpu-topology: $COIN_JAX_TOPOLOGY"
    devices="{google.com/tpu: $COIN_JAX_CHIPS_PER_HOST}"
    coordinator="[]" # GKE tells the hosts of a slice about each other
  else
    need NODES GPUS_PER_NODE
    hosts=$COIN_JAX_NODES
    selector="cloud.google.com/gke-accelerator: $COIN_JAX_GKE_ACCELERATOR"
    devices="{nvidia.com/gpu: $COIN_JAX_GPUS_PER_NODE}"
    # JobSet gives every pod this stable name; the index is the pod's within its job.
    coordinator="[{name: COIN_JAX_COORDINATOR, value: "
    coordinator+="\"$COIN_JAX_NAME-workers-0-0.$COIN_JAX_NAME:8476\"}"
    coordinator+=", {name: COIN_JAX_PROCESSES, value: \"$hosts\"}"
    coordinator+=", {name: COIN_JAX_PROCESS, valueFrom: {fieldRef: {fieldPath: "
    coordinator+="\"metadata.annotations['batch.kubernetes.io/job-completion-index']\"}}}]"
  fi
  selector="{$selector$spot}"
}

render() {
  local text name value
  describe_hosts
  text=$(<"$launch_folder/gke_jobset.yaml")
  local values=(
    NAME "$COIN_JAX_NAME" NAMESPACE "$COIN_JAX_NAMESPACE" RESTARTS "$COIN_JAX_RESTARTS" HOSTS "$hosts"
    GRACE_SECONDS "$COIN_JAX_GRACE_SECONDS" NODE_SELECTOR "$selector" IMAGE "$COIN_JAX_IMAGE"
    COORDINATOR "$coordinator" DEVICES "$devices" SHARED_FOLDER "$COIN_JAX_SHARED_FOLDER"
    VOLUME_CLAIM "$COIN_JAX_VOLUME_CLAIM" TRAIN_ARGUMENTS "$(yaml_list "${train_arguments[@]}")"
  )
  local word
  for ((word = 0; word < ${#values[@]}; word += 2)); do
    name="\${${values[word]}}" value=${values[word + 1]}
    text=${text//"$name"/"$value"}
  done
  printf '%s\n' "$text"
}

# kube_pod VERB FLAG...: about the pod of the worker that was asked for.
kube_pod() {
  kube "$@" --selector \
    "jobset.sigs.k8s.io/jobset-name=$COIN_JAX_NAME,batch.kubernetes.io/job-completion-index=$worker"
}

# wait_for_pod: nodes may take long to come, and there is no log before the container runs.
wait_for_pod() {
  local phase last_phase="" silences=0
  if [[ -n $dry_run ]]; then
    echo "would wait until the pod of worker $worker runs, looking every $COIN_JAX_POLL_SECONDS s"
    return
  fi
  while true; do
    if phase=$(kube_pod get pods --output=jsonpath='{.items[*].status.phase}'); then
      silences=0
    else
      silences=$((silences + 1))
      ((silences < 10)) ||
        fail "no answer ten times; the JobSet goes on. '$script logs' follows it later"
    fi
    case $phase in *Running* | *Succeeded* | *Failed*) return ;; esac
    [[ $phase == "$last_phase" ]] || say "the pod of worker $worker: ${phase:-not made yet}"
    last_phase=$phase
    pause
  done
}

follow_log() { follow kube_pod logs --follow --tail=-1; }

# report_end: what the controller made of it, once the log has ended.
report_end() {
  local end
  [[ -z $dry_run ]] || return 0
  end=$(kube get jobset "$COIN_JAX_NAME" --output=jsonpath='{.status.terminalState}')
  case $end in
    Completed) say "the training is done" ;;
    Failed)
      fail "the JobSet has failed; '$script logs' shows why, '$script delete $COIN_JAX_NAME' removes it"
      ;;
    *) say "the pod ended, the JobSet not: it restarts or was stopped. '$script status' tells" ;;
  esac
}

set_suspend() { kube patch jobset "$COIN_JAX_NAME" --type=merge --patch "{\"spec\": {\"suspend\": $1}}"; }

parse_arguments "$@"
[[ $action == delete || -z $typed_name ]] || fail "$typed_name: not an argument of $action" 2
need NAME
: "${COIN_JAX_NAMESPACE:=default}" "${COIN_JAX_SHARED_FOLDER:=/mnt/coin_jax}"
[[ $worker != all ]] || fail "--worker all: one at a time here" 2
case $action in
  render | run)
    need_train_arguments
    output_in_shared_folder
    ;;
  *) need_program kubectl "https://kubernetes.io/docs/tasks/tools" ;;
esac

case $action in
  render) render ;;
  run)
    jobset=$(render)
    need_program kubectl "https://kubernetes.io/docs/tasks/tools"
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    printf '%s\n' "$jobset" >"$scratch/jobset.yaml"
    [[ -z $dry_run ]] || printf '%s\n' "$jobset"
    kube apply --filename="$scratch/jobset.yaml"
    follow wait_for_pod
    follow_log
    report_end
    ;;
  logs) follow_log ;;
  status)
    kube get jobset "$COIN_JAX_NAME" --output=wide
    kube get pods --selector "jobset.sigs.k8s.io/jobset-name=$COIN_JAX_NAME" --output=wide
    ;;
  stop) set_suspend true ;;
  resume) set_suspend false ;;
  delete)
    need_typed_name
    kube delete jobset "$COIN_JAX_NAME"
    ;;
  *) fail "'$action': allowed are render, run, logs, status, stop, resume and delete" 2 ;;
esac
