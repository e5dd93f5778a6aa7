#!/usr/bin/env bash
# shellcheck source-path=SCRIPTDIR
# Trains on Cloud TPU VMs, from one host to a whole pod slice, through queued resources.
#
#   launch/tpu_vm.sh run [--keep NAME] --env my.env -- --config configs/flan_t5.py:xl
#       the machines are made unless they are there, set up, started and followed. With --keep
#       they are made anew after a preemption (what is left of NAME is deleted for that, and its
#       name is typed out here for that reason) and the training goes on from its last checkpoint.
#   launch/tpu_vm.sh create | setup | status | stop   --env my.env
#   launch/tpu_vm.sh start  --env my.env -- TRAIN ARGUMENTS
#   launch/tpu_vm.sh logs [--worker N] --env my.env
#   launch/tpu_vm.sh delete NAME --env my.env         the machines and the request for them
#
# Flags: --dry-run prints what would be done; --spot, --on-demand, --reserved; every setting of
# launch/example.env. `stop` saves and ends the training; the machines cost until `delete`.
# Ctrl-C while logs are shown leaves the training running.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

job=coin_jax_job # the folder of the training on every worker, in the home folder

tpus() { act gcloud compute tpus "$@" --project="$COIN_JAX_PROJECT" --zone="$COIN_JAX_ZONE" --quiet; }

# remote WORKERS COMMAND: in their home folders. A connection to a machine that is gone ends.
remote() {
  tpus tpu-vm ssh "$COIN_JAX_NAME" --worker="$1" --command="$2" \
    --ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oServerAliveCountMax=4
}

create() {
  local flags=()
  [[ $COIN_JAX_CAPACITY == on-demand ]] || flags+=("--$COIN_JAX_CAPACITY")
  [[ -z ${COIN_JAX_SERVICE_ACCOUNT:-} ]] || flags+=("--service-account=$COIN_JAX_SERVICE_ACCOUNT")
  say "asking for $COIN_JAX_NAME: $COIN_JAX_ACCELERATOR_TYPE, $COIN_JAX_CAPACITY, in $COIN_JAX_ZONE"
  tpus queued-resources create "$COIN_JAX_NAME" --node-id="$COIN_JAX_NAME" \
    --accelerator-type="$COIN_JAX_ACCELERATOR_TYPE" --runtime-version="$COIN_JAX_RUNTIME_VERSION" \
    --async ${flags[@]+"${flags[@]}"}
}

delete() { tpus queued-resources delete "$COIN_JAX_NAME" --force; }

# ask GROUP FIELDS: what gcloud says of them, NONE where there is no such thing.
ask() {
  local answer
  if answer=$(tpus "$1" describe "$COIN_JAX_NAME" --format="value($2)" 2>"$scratch/error"); then
    printf '%s\n' "${answer:-UNKNOWN}"
  elif grep -q -i -E 'NOT_FOUND|not found' "$scratch/error"; then
    echo NONE
  else
    say "gcloud does not answer: $(tail -n 1 "$scratch/error")"
    return 1
  fi
}

# look: sets machine to none, waiting, ready, gone (preempted), failed or silent, and says so where
# that is news. A request can stay ACTIVE while its machines have been preempted.
look() {
  local request node=""
  if ! request=$(ask queued-resources state.state); then
    machine=silent
    return
  fi
  if [[ $request == ACTIVE ]] && ! node=$(ask tpu-vm state); then
    machine=silent
    return
  fi
  case $request:$node in
    NONE:) machine=none ;;
    ACTIVE:READY) machine=ready ;;
    ACTIVE:PREEMPTED | ACTIVE:TERMINATED | ACTIVE:NONE | SUSPENDED:) machine=gone ;;
    FAILED:) machine=failed ;;
    *) machine=waiting ;;
  esac
  local news="$COIN_JAX_NAME is $request${node:+, its machines $node}"
  [[ $news == "${last_news:-}" ]] || say "$news"
  last_news=$news
}

# look_at_job: sets training to none, running, leaving (some workers have ended, the others follow
# within COIN_JAX_HEARTBEAT_TIMEOUT), done, stopped, refused (every worker ended with a message, so
# another try would end the same way), failed or silent.
look_at_job() {
  local command answer
  command="if [ -x coin_jax/launch/machine.sh ]; then coin_jax/launch/machine.sh state $job;"
  command+=" else echo coin_jax-job none; fi"
  if ! answer=$(remote all "$command" 2>"$scratch/error"); then
    say "the workers do not answer: $(tail -n 1 "$scratch/error")"
    training=silent
    return
  fi
  answer=$(sed -n 's/.*coin_jax-job \([a-z]*\( [0-9]*\)\{0,1\}\).*/\1/p' <<<"$answer" | sort | uniq -c)
  case $answer in
    '') training=silent ;;
    *running*)
      training=running
      [[ $answer != *ended* ]] || training=leaving
      ;;
    *none* | *lost*) training=none ;;
    *stopped*) training=stopped ;;
    *)
      training=failed
      grep -q -v 'ended 0$' <<<"$answer" || training="done"
      grep -q -v 'ended [12]$' <<<"$answer" || training=refused
      ;;
  esac
}

setup() {
  say "copying the project to every worker of $COIN_JAX_NAME"
  # Named one by one, so that no key or data that lies about is copied.
  act tar -czf "$scratch/coin_jax.tar.gz" -C "$project_folder" --exclude=__pycache__ --exclude='*.env' \
    coin_jax configs launch suites requirements.txt pyproject.toml README.md || return
  retry tpus tpu-vm scp "$scratch/coin_jax.tar.gz" "$COIN_JAX_NAME:" --worker=all || return
  local command="mkdir -p coin_jax && tar -xzf coin_jax.tar.gz -C coin_jax"
  if [[ -n ${COIN_JAX_SHARED:-} ]]; then
    command+=" && coin_jax/launch/machine.sh mount $COIN_JAX_SHARED $COIN_JAX_SHARED_FOLDER"
  fi
  say "installing there"
  retry remote all "$command && coin_jax/launch/worker.sh tpu --install"
}

start() {
  say "starting the training on every worker"
  local command
  command="coin_jax/launch/worker.sh tpu $(quoted "${train_arguments[@]}")"
  remote all "coin_jax/launch/machine.sh start $job $command"
}

follow_log() { follow remote "$worker" "coin_jax/launch/machine.sh follow $job"; }

# give_up_unless_kept WHAT: for what only --keep may mend, because it deletes.
give_up_unless_kept() {
  [[ -n $keep_name ]] || fail "$COIN_JAX_NAME $1. \
'$script run --keep $COIN_JAX_NAME ...' makes it anew and goes on from the last checkpoint"
}

# count_restart WHAT: gives up after COIN_JAX_RESTARTS of them.
count_restart() {
  restarts=$((restarts + 1))
  ((restarts <= COIN_JAX_RESTARTS)) ||
    fail "$1, after $COIN_JAX_RESTARTS restarts. 'logs' shows why; \
'$script delete $COIN_JAX_NAME' gives the machines back"
  say "$1; restart $restarts of $COIN_JAX_RESTARTS"
}

make_anew() {
  say "what is left of $COIN_JAX_NAME is deleted and asked for again"
  if delete; then
    while look && [[ $machine != none && $machine != silent ]]; do pause; done
  fi
}

# run: looks, does the next thing, and looks again, until the training is done.
run() {
  local restarts=0 silences=0 reason
  if [[ -n $dry_run ]]; then
    create
    echo "would wait until $COIN_JAX_NAME is ACTIVE, looking every $COIN_JAX_POLL_SECONDS s"
    setup
    start
    follow_log
    [[ -z $keep_name ]] || echo "would delete $COIN_JAX_NAME and do all this again after a preemption"
    return
  fi
  while true; do
    look
    training=""
    [[ $machine != ready ]] || look_at_job
    if [[ $machine == silent || $training == silent ]]; then
      silences=$((silences + 1))
      [[ $silences -lt 10 || -n $keep_name ]] ||
        fail "no answer ten times; the training, if it runs, goes on. Run this again"
    else
      silences=0
    fi
    case $machine:$training in
      none:) create || count_restart "the request was refused" ;;
      gone:)
        give_up_unless_kept "was preempted"
        make_anew
        ;;
      failed:)
        give_up_unless_kept "could not be had"
        reason=$(ask queued-resources state.failedData.error.message || true)
        count_restart "$COIN_JAX_NAME could not be had: $reason"
        make_anew
        ;;
      ready:none)
        setup && start && continue
        count_restart "setting up failed"
        ;;
      ready:running) follow_log || true ;;
      ready:done)
        say "the training is done. The machines cost until '$script delete $COIN_JAX_NAME'"
        return
        ;;
      ready:stopped)
        say "the training was stopped and has saved; 'start' goes on with it"
        return 143
        ;;
      ready:refused) fail "the training ended with an error of its own, shown above or by 'logs'" ;;
      ready:failed)
        # Machines that are taken away end a training before their own state says so.
        pause
        look
        [[ $machine == ready ]] || continue
        count_restart "the training broke off"
        setup && start && continue
        ;;
    esac
    pause
  done
}

parse_arguments "$@"
[[ $action == delete || -z $typed_name ]] || fail "$typed_name: not an argument of $action" 2
need NAME PROJECT ZONE
: "${COIN_JAX_SHARED_FOLDER:=/mnt/coin_jax}"
need_program gcloud "https://cloud.google.com/sdk/docs/install"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'say "interrupted; nothing was undone. \"$script status\" says how things stand."; exit 130' INT

# prepare_training: what `run` and `start` need to know.
prepare_training() {
  need_train_arguments
  [[ -z ${COIN_JAX_SHARED:-} ]] || output_in_shared_folder
}

case $action in
  run)
    need ACCELERATOR_TYPE RUNTIME_VERSION
    prepare_training
    if [[ -n $keep_name ]]; then
      [[ $keep_name == "$COIN_JAX_NAME" ]] ||
        fail "--keep $keep_name, but COIN_JAX_NAME is $COIN_JAX_NAME; type out what may be deleted" 2
      [[ -n ${COIN_JAX_SHARED:-} ]] ||
        fail "--keep needs COIN_JAX_SHARED: without it the checkpoints go with the machines" 2
    fi
    run
    ;;
  create)
    need ACCELERATOR_TYPE RUNTIME_VERSION
    create
    ;;
  setup) setup ;;
  start)
    prepare_training
    start
    ;;
  logs) follow_log ;;
  stop) remote all "coin_jax/launch/machine.sh stop $job $COIN_JAX_GRACE_SECONDS" ;;
  status)
    tpus queued-resources describe "$COIN_JAX_NAME" --format="value(state.state)" || true
    tpus tpu-vm describe "$COIN_JAX_NAME" --format="value(state,health)" || true
    remote all "coin_jax/launch/machine.sh state $job" || true
    ;;
  delete)
    need_typed_name
    delete
    ;;
  *) fail "'$action': allowed are run, create, setup, start, logs, stop, status and delete" 2 ;;
esac
