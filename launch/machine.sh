#!/usr/bin/env bash
# One training in the background of the machine this runs on; what tpu_vm.sh and gpu.sh call there.
#
#   launch/machine.sh start  FOLDER COMMAND...   in a session of its own, log in FOLDER/log
#   launch/machine.sh state  FOLDER              one line: coin_jax-job STATE [STATUS]
#   launch/machine.sh follow FOLDER              shows the log until it ends; its exit status
#   launch/machine.sh stop   FOLDER [SECONDS]    SIGTERM, and waits for it to save and end
#   launch/machine.sh mount  gs://BUCKET|SERVER:/EXPORT FOLDER
#
# States: none (nothing was started), running, ended STATUS, stopped STATUS (it was asked to), lost
# (the machine or the process went away without a word).
set -euo pipefail

# A lock says whether it runs: every process of the training holds it, whatever becomes of the
# others, and none can be mistaken for it after a reboot.
is_running() { [[ -e $folder/lock ]] && ! flock --shared --nonblock "$folder/lock" true; }

state() {
  if is_running; then
    echo running
  elif [[ -s $folder/status ]]; then
    echo "$([[ -e $folder/stop ]] && echo stopped || echo ended) $(<"$folder/status")"
  elif [[ -e $folder/lock ]]; then
    echo lost
  else
    echo none
  fi
}

start() {
  if is_running; then
    echo "machine.sh: a training runs already; 'stop' saves and stops it" >&2
    return 3
  fi
  mkdir -p "$folder"
  rm -f "$folder/status" "$folder/stop"
  : >"$folder/log"
  # The log is on file, the lock is fd 9, and no terminal can reach it.
  setsid "$BASH" "$0" supervise "$folder" "$@" </dev/null >>"$folder/log" 2>&1 9>"$folder/lock" &
  local supervisor=$!
  until is_running || [[ -s $folder/status ]]; do
    kill -0 "$supervisor" 2>/dev/null || { echo "machine.sh: it did not start" >&2 && return 3; }
    sleep 0.05
  done
  echo "machine.sh: started"
}

supervise() {
  flock --timeout 5 9 || exit 3 # longer than anyone looks at it
  echo "$$" >"$folder/group"
  trap : TERM INT # the training is told too, and ends first
  local status=0
  "$@" || status=$?
  echo "$status" >"$folder/status.new"
  mv "$folder/status.new" "$folder/status"
}

follow() {
  local ended
  [[ -e $folder/log ]] || { echo "machine.sh: nothing was started" >&2 && return 4; }
  tail -n +1 --follow=name "$folder/log" 2>/dev/null &
  tail=$!
  trap 'kill "$tail" 2>/dev/null || true' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  while is_running && kill -0 "$tail" 2>/dev/null; do sleep "${COIN_JAX_POLL_SECONDS:-1}"; done
  sleep 0.2 # the last lines
  ended=$(state)
  case $ended in
    ended* | stopped*) return "${ended#* }" ;;
    *) return 5 ;;
  esac
}

stop() {
  local seconds=${1:-120} waited=0
  if ! is_running; then
    echo "machine.sh: nothing runs"
    return 0
  fi
  : >"$folder/stop"
  kill -TERM -- "-$(<"$folder/group")" 2>/dev/null || true
  while is_running; do
    if ((waited >= seconds * 5)); then
      echo "machine.sh: not stopped after $seconds s; it may still be saving. Ask again" >&2
      return 6
    fi
    sleep 0.2
    waited=$((waited + 1))
  done
  echo "machine.sh: stopped"
}

mount_shared() {
  local source=$1
  if mountpoint --quiet "$folder"; then return 0; fi
  sudo mkdir -p "$folder"
  sudo chown "$(id -u):$(id -g)" "$folder"
  case $source in
    gs://*)
      command -v gcsfuse >/dev/null || install_gcsfuse
      # Nothing is remembered: what one host writes, the others have to see at once.
      gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
        "${source#gs://}" "$folder"
      ;;
    *:/*)
      if ! command -v mount.nfs >/dev/null; then
        sudo apt-get update -q
        sudo apt-get install -q -y nfs-common
      fi
      sudo mount -t nfs -o hard,timeo=600,lookupcache=positive "$source" "$folder"
      ;;
    *)
      echo "machine.sh: $source is neither gs://BUCKET nor SERVER:/EXPORT" >&2
      return 2
      ;;
  esac
}

# https://cloud.google.com/storage/docs/cloud-storage-fuse/install
install_gcsfuse() {
  local keyring=/usr/share/keyrings/cloud.google.asc host=https://packages.cloud.google.com/apt
  curl -fsS "$host/doc/apt-key.gpg" | sudo tee "$keyring" >/dev/null
  echo "deb [signed-by=$keyring] $host gcsfuse-$(lsb_release -c -s) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get update -q
  sudo apt-get install -q -y gcsfuse
}

if [[ $# -lt 2 ]]; then
  sed -n '2,13s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
action=$1
folder=$2
shift 2
case $action in
  start | supervise | follow | stop) "$action" "$@" ;;
  state) echo "coin_jax-job $(state)" ;;
  mount)
    shared=$folder
    folder=$1
    mount_shared "$shared"
    ;;
  *)
    echo "machine.sh: '$action'; allowed are start, state, follow, stop and mount" >&2
    exit 2
    ;;
esac
