# What the stand-ins share. $STAND_IN is the folder of one test: `calls` is what they were asked
# (ASCII's separators between words and between calls); other files in it say how they answer.
# shellcheck shell=bash

printf '%s' "${0##*/}" >"$STAND_IN/call.$$"
printf '\x1f%s' "$@" >>"$STAND_IN/call.$$"
printf '\x1e' >>"$STAND_IN/call.$$"
cat "$STAND_IN/call.$$" >>"$STAND_IN/calls" # at once: workers ask at the same time
rm "$STAND_IN/call.$$"
if [[ -e $STAND_IN/delay ]]; then sleep "$(<"$STAND_IN/delay")"; fi

# take FILE: its first line, which is then gone; the last one stays if a second word is given.
take() {
  local line
  [[ -s $STAND_IN/$1 ]] || return 1
  IFS= read -r line <"$STAND_IN/$1"
  if [[ -z ${2:-} || $(wc -l <"$STAND_IN/$1") -gt 1 ]]; then sed -i 1d "$STAND_IN/$1"; fi
  printf '%s\n' "$line"
}

# fail_if_told WORDS: where the first line of `fail` is found among them.
fail_if_told() {
  if [[ -s $STAND_IN/fail && " $* " == *" $(head -n 1 "$STAND_IN/fail") "* ]]; then
    take fail >/dev/null
    echo "ERROR: UNAVAILABLE: the service is not there" >&2
    exit 1
  fi
}
