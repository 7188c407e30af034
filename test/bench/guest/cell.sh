#!/usr/bin/env bash
# Runs fio on a block device and takes what the CPUs did during a window in the middle of it.
#   cell.sh DEVICE_NAME PID|0[,SERVER_PID...] WARM_S WINDOW_S OUTPUT fio ARGUMENTS...
# Prints `@A KEY VALUES` and `@B KEY VALUES` at the window's two ends, then fio's output behind a line `@json`.
# Only builtins inside the window: nothing else shall run on the machine that is measured.
set -u
device=$1 warm=$3 window=$4 output=$5
IFS=, read -ra pids <<<"$2"
shift 5

pause() { read -rt "$1" <>"$fifo" || true; }
fifo=$(mktemp -u /tmp/cell.XXXXXX)
mkfifo "$fifo"

first_line() {
  local line=
  read -r line <"$2" || true
  echo "$1 $line"
}
snapshot() {
  first_line "@$1 cpu" /proc/stat
  first_line "@$1 disk" "/sys/block/$device/stat"
  first_line "@$1 fio" "/proc/$fio/stat"
  local i
  for i in "${!pids[@]}"; do
    if [ "${pids[i]}" != 0 ]; then first_line "@$1 process$i" "/proc/${pids[i]}/stat"; fi
  done
  echo "@$1 end"
}
count_ios() {
  local reads writes rest merged sectors ticks
  read -r reads merged sectors ticks writes rest <"/sys/block/$device/stat"
  count=$((reads + writes))
}

rm -f "$output"
count_ios
before=$count
"$@" &
fio=$!
# fio's own ramp begins about when its I/O does.
while [ "$count" -lt $((before + 8)) ] && kill -0 $fio 2>/dev/null; do
  pause 0.05
  count_ios
done
pause "$warm"
snapshot A
pause "$window"
snapshot B
wait $fio
code=$?
rm -f "$fifo"
echo "@json"
cat "$output"
exit $code
