# What the launch scripts share; sourced by them, never run.
#
# A script takes `ACTION [NAME] [flags] [-- TRAIN ARGUMENTS]`. Every setting of example.env is a
# flag as well: COIN_JAX_ACCELERATOR_TYPE is --accelerator-type. A flag wins over the --env file,
# the file over the environment.
# shellcheck shell=bash
# shellcheck disable=SC2034  # what is set here is read by the scripts

launch_folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project_folder=$(dirname "$launch_folder")
script=${0##*/}

action="" typed_name="" keep_name="" worker=0 dry_run=""
train_arguments=()

settings=(
  NAME PROJECT ZONE ACCELERATOR_TYPE RUNTIME_VERSION CAPACITY SERVICE_ACCOUNT SHARED SHARED_FOLDER
  RESTARTS IMAGE CONTEXT NAMESPACE VOLUME_CLAIM GKE_ACCELERATOR TOPOLOGY CHIPS_PER_HOST
  NODES GPUS_PER_NODE PARTITION ACCOUNT TIME INFRA ACCELERATORS POLL_SECONDS GRACE_SECONDS
)

say() { printf '%s\n' "$script: $*" >&2; }

# fail MESSAGE [STATUS]
fail() {
  say "$1"
  exit "${2:-1}"
}

# usage: the comment at the top of the script, from its third line to its first line of code.
usage() {
  awk 'NR > 2 { if (!/^#( |$)/) exit; sub(/^# ?/, ""); print }' "$0" >&2
  exit 2
}

is_setting() {
  local known
  for known in "${settings[@]}"; do [[ $known == "$1" ]] && return 0; done
  return 1
}

# assign WHERE NAME VALUE: sets COIN_JAX_NAME, after a look at both. The characters that a shell,
# YAML or a URL would read as more than text are refused, so no value can become a command.
assign() {
  if ! is_setting "$2"; then
    case $2 in
      *KEY* | *TOKEN* | *SECRET* | *PASSWORD*)
        fail "$1: keys and passwords do not belong here; docs/launch.md says where they go" 2
        ;;
    esac
    fail "$1: there is no setting COIN_JAX_$2; launch/example.env lists and explains them all" 2
  fi
  if [[ ! $3 =~ ^[A-Za-z0-9_.:/@,+=-]*$ ]]; then
    fail "$1: COIN_JAX_$2 may hold letters, digits and _.:/@,+=- only, no spaces or quotes" 2
  fi
  printf -v "COIN_JAX_$2" '%s' "$3"
}

# read_settings FILE: KEY=VALUE lines, comments and empty lines. Read as text, never executed.
read_settings() {
  local file=$1 line number=0
  [[ -r $file ]] || fail "$file cannot be read; copy launch/example.env and fill it in" 2
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    line=${line%$'\r'}
    case $line in
      '' | '#'*) ;;
      COIN_JAX_*=*) line=${line#COIN_JAX_} && assign "$file:$number" "${line%%=*}" "${line#*=}" ;;
      *) fail "$file:$number: not a line of the form COIN_JAX_SETTING=VALUE" 2 ;;
    esac
  done <"$file"
}

# parse_arguments "$@": fills action, typed_name, keep_name, worker, dry_run, train_arguments and the
# settings.
parse_arguments() {
  local flag name value word flags=()
  [[ $# -gt 0 ]] || usage
  case $1 in -h | --help | help) usage ;; esac
  action=$1
  shift
  if [[ $# -gt 0 && $1 != -* ]]; then
    typed_name=$1
    shift
  fi
  while [[ $# -gt 0 ]]; do
    flag=$1
    shift
    case $flag in
      --) train_arguments=("$@") && break ;;
      -h | --help) usage ;;
      --dry-run) dry_run=yes && continue ;;
      --spot | --on-demand | --reserved) flags+=(CAPACITY "${flag#--}") && continue ;;
      --*=*) value=${flag#*=} && flag=${flag%%=*} ;;
      --*)
        [[ $# -gt 0 ]] || fail "$flag needs a value" 2
        value=$1
        shift
        ;;
      *) fail "$flag: not a flag; the arguments of training stand after --" 2 ;;
    esac
    case $flag in
      --env) read_settings "$value" ;;
      --keep) keep_name=$value ;;
      --worker) worker=$value ;;
      *)
        name=$(tr 'a-z-' 'A-Z_' <<<"${flag#--}")
        is_setting "$name" || fail "there is no flag $flag; the arguments of training stand after --" 2
        flags+=("$name" "$value")
        ;;
    esac
  done
  # After the file, wherever --env stood.
  for ((word = 0; word < ${#flags[@]}; word += 2)); do
    assign "--$(tr 'A-Z_' 'a-z-' <<<"${flags[word]}")" "${flags[word]}" "${flags[word + 1]}"
  done
  [[ $worker =~ ^([0-9]+|all)$ ]] || fail "--worker $worker: a number or all" 2
  [[ ${COIN_JAX_POLL_SECONDS:=30} =~ ^[0-9]*\.?[0-9]+$ ]] ||
    fail "COIN_JAX_POLL_SECONDS=$COIN_JAX_POLL_SECONDS: a number of seconds" 2
  : "${COIN_JAX_GRACE_SECONDS:=120}" "${COIN_JAX_RESTARTS:=3}"
  for name in GRACE_SECONDS RESTARTS NODES GPUS_PER_NODE CHIPS_PER_HOST; do
    value=COIN_JAX_$name
    [[ ${!value:-} =~ ^[0-9]*$ ]] || fail "$value=${!value}: a whole number" 2
  done
  case ${COIN_JAX_CAPACITY:=on-demand} in
    spot | on-demand | reserved) ;;
    *) fail "COIN_JAX_CAPACITY is spot, on-demand or reserved, not $COIN_JAX_CAPACITY" 2 ;;
  esac
  name=${COIN_JAX_NAME:-}
  if [[ -n $name && ! $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]]; then
    fail "COIN_JAX_NAME=$name: small letters, digits and -, a letter first, 40 at most" 2
  fi
}

# need SETTING...: refuses to go on without them.
need() {
  local name variable missing=""
  for name in "$@"; do
    variable=COIN_JAX_$name
    [[ -n ${!variable:-} ]] || missing+=" $variable"
  done
  [[ -z $missing ]] || fail "not set:$missing. Give --env FILE (see launch/example.env) or flags" 2
}

need_program() {
  [[ -n $dry_run ]] || command -v "$1" >/dev/null || fail "$1 is not installed here: $2" 127
}

# need_train_arguments: some, and no keys among them; everyone on a machine can read a command line.
need_train_arguments() {
  local word
  [[ ${#train_arguments[@]} -gt 0 ]] ||
    fail "what shall be trained? For example: -- --config configs/flan_t5.py:xl" 2
  for word in "${train_arguments[@]}"; do
    case $(tr 'A-Z-' 'a-z_' <<<"${word%%=*}") in
      *api_key | *[._]token | *secret | *password)
        fail "${word%%=*}: no keys or passwords on the command line; docs/launch.md says where they go" 2
        ;;
    esac
  done
}

# Nothing is deleted unless its name was typed out for that, and is the one that is configured.
need_typed_name() {
  [[ -n $typed_name ]] || fail "type out what shall be deleted: $script delete ${COIN_JAX_NAME:-NAME}" 2
  [[ $typed_name == "$COIN_JAX_NAME" ]] ||
    fail "$typed_name was typed, but COIN_JAX_NAME is $COIN_JAX_NAME; nothing is deleted" 2
}

# quoted WORD...: as a shell reads them back.
quoted() {
  local word mark="'\\''" line=""
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=@,+-]+$ ]] || word="'${word//\'/$mark}'"
    line+="${line:+ }$word"
  done
  printf '%s' "$line"
}

# act COMMAND...: runs it, or with --dry-run prints it. Nothing can wait for an answer on a terminal.
act() {
  if [[ -n $dry_run ]]; then
    printf 'would run: %s\n' "$(quoted "$@")"
  else
    "$@" </dev/null
  fi
}

# retry COMMAND...: five times at most, for machines that have just come up.
retry() {
  local attempt
  for attempt in 1 2 3 4 5; do
    "$@" && return 0
    [[ $attempt == 5 ]] || { say "attempt $attempt of 5 failed; trying again" && pause; }
  done
  return 1
}

pause() { sleep "$COIN_JAX_POLL_SECONDS"; }

# output_in_shared_folder: training goes to the shared folder unless it was told where.
output_in_shared_folder() {
  local word
  for word in "${train_arguments[@]}"; do
    case $word in --output | --output=*) return ;; esac
  done
  train_arguments+=(--output "$COIN_JAX_SHARED_FOLDER/runs")
}

# follow COMMAND...: shows a log until it ends. Ctrl-C ends the showing, not the training.
follow() {
  local before status=0
  before=$(trap -p INT)
  trap 'say "no longer following. The training goes on: \"$script logs\" follows again," \
    "\"$script stop\" saves and stops it."; exit 130' INT
  "$@" || status=$?
  eval "${before:-trap - INT}"
  return "$status"
}
