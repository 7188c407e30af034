#!/usr/bin/env bash
# Serves RAM disks by the kernel's NVMe/TCP target, a subsystem each: bench0, bench1, …
#   nvme-target.sh ADDRESS PORT SIZE_MIB COUNT
set -eu
address=$1 port=$2 size=$3 count=$4
modprobe brd rd_nr="$count" rd_size=$((size * 1024)) max_part=0
modprobe nvmet
modprobe nvmet-tcp
root=/sys/kernel/config/nvmet
mkdir "$root/ports/1"
echo "$address" >"$root/ports/1/addr_traddr"
echo "$port" >"$root/ports/1/addr_trsvcid"
echo tcp >"$root/ports/1/addr_trtype"
echo ipv4 >"$root/ports/1/addr_adrfam"
for ((i = 0; i < count; i++)); do
  # All of its pages are there: no read meets a hole.
  dd if=/dev/zero of="/dev/ram$i" bs=1M oflag=direct count="$size" status=none
  subsystem=$root/subsystems/bench$i
  mkdir "$subsystem"
  echo 1 >"$subsystem/attr_allow_any_host"
  mkdir "$subsystem/namespaces/1"
  echo "/dev/ram$i" >"$subsystem/namespaces/1/device_path"
  echo 1 >"$subsystem/namespaces/1/enable"
  ln -s "$subsystem" "$root/ports/1/subsystems/bench$i"
done
echo "serving $count"
