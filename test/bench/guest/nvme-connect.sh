#!/usr/bin/env bash
# Connects the kernel's NVMe/TCP host to a subsystem, without nvme-cli, and prints the disk's name.
#   nvme-connect.sh ADDRESS PORT SUBSYSTEM
set -eu
address=$1 port=$2 subsystem=$3
modprobe nvme-tcp
exec 3<>/dev/nvme-fabrics
echo "transport=tcp,traddr=$address,trsvcid=$port,nqn=$subsystem" >&3
read -r answer <&3
controller=$(sed -n 's/.*instance=\([0-9]*\).*/nvme\1/p' <<<"$answer")
for ((i = 0; i < 100; i++)); do
  for path in /sys/class/nvme/"$controller"/nvme*n*; do
    # With native multipath nvme0c1n1 is a path to the disk nvme0n1.
    disk=$(sed 's/c[0-9]*n/n/' <<<"${path##*/}")
    if [ -b "/dev/$disk" ]; then
      echo "disk $disk"
      exit 0
    fi
  done
  sleep 0.1
done
echo "no disk: $answer" >&2
exit 1
