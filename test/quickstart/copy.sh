#!/usr/bin/env bash
# Copies a tree with tar and says every 4 MiB how far it is: copy.sh TARGET TAR-PARAMETERS...
# A line of progress: `tar: copied N`, N counting records of 256 KiB.
set -euo pipefail
target=$1
shift
mkdir -p "$target"
tar -b 512 -cf - "$@" |
  tar -b 512 -B -C "$target" -xf - --checkpoint=16 --checkpoint-action=echo='copied %u'
