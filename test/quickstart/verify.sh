#!/usr/bin/env bash
# Compares a copied tree with what the source's side knows of it: verify.sh COPY LISTING CHECKSUMS
# Ends with 0 only if every entry is there with its kind, mode, size or target, nothing else is, and every checksum fits.
set -euo pipefail
cd "$1"
export LC_ALL=C
if ! find . -mindepth 1 \( -type f -printf 'f %m %s %P\n' -o -type d -printf 'd %m %P\n' -o -type l -printf 'l %l %P\n' \
  -o -printf '? %y %P\n' \) | sort | diff - "$2" | head -n 20; then
  echo "the lists of files differ (< copy, > source)"
  exit 1
fi
jobs=$(nproc)
running=()
for ((job = 1; job <= jobs; job++)); do
  split --number="l/$job/$jobs" "$3" | sha256sum --check --quiet --strict - &
  running+=($!)
done
for pid in "${running[@]}"; do wait "$pid"; done
echo "checksums verified: $(wc -l <"$3")"
