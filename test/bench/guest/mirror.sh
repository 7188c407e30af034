#!/usr/bin/env bash
# Makes a RAID1 of whole disks of one size, without metadata, by md's sysfs files, and prints its name.
#   mirror.sh NUMBER DISK DISK...
set -eu
name=md$1
shift
modprobe raid1
echo "$name" >/sys/module/md_mod/parameters/new_array
md=/sys/block/$name/md
echo none >"$md/metadata_version"
echo raid1 >"$md/level"
echo $# >"$md/raid_disks"
echo $(($(cat "/sys/block/$1/size") / 2)) >"$md/component_size"
slot=0
for disk in "$@"; do
  cat "/sys/block/$disk/dev" >"$md/new_dev"
  echo $slot >"$md/dev-$disk/slot"
  slot=$((slot + 1))
done
# Nothing to compare: both are written before they are read.
echo none >"$md/resync_start"
echo active >"$md/array_state"
echo "disk $name"
