#!/usr/bin/env bash
# Makes a fresh Debian machine (root, npm, any Node.js) ready: system packages, npm packages, native addon, gRPC types.
# Safe to repeat; does only what is missing. `setup.sh test` also installs what only the tests and benchmarks need.
set -euo pipefail
cd "$(dirname "$0")/.."

run_packages=(g++ qemu-system-x86 busybox-static kmod xz-utils iproute2 e2fsprogs)
test_packages=(fio nbdkit libnbd-bin qemu-utils nbd-client nbd-server xfsprogs)

packages=("${run_packages[@]}")
if [ "${1:-}" = test ]; then packages+=("${test_packages[@]}"); fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "setup: these packages are missing and only root can install them: ${missing[*]}" >&2
    exit 1
  fi
  echo "setup: installing ${missing[*]}"
  apt-get update -qq
  # nbd-server would start a daemon of its own: keep services from starting.
  RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >/dev/null
fi

lock_sum=$(sha256sum package-lock.json | cut -d' ' -f1)
if [ "$(cat node_modules/.blockwire-lock 2>/dev/null || true)" != "$lock_sum" ]; then
  echo "setup: installing npm packages"
  npm ci --no-audit --no-fund --loglevel=error
  echo "$lock_sum" >node_modules/.blockwire-lock
fi

node=node_modules/.bin/node
newest_source=$(find native/src native/build.ts -type f -printf '%T@\n' | sort -n | tail -1)
addon=native/build/blockwire.node
if [ ! -f "$addon" ] || [ "$(printf '%s\n%s\n' "$newest_source" "$(stat -c %Y.999 "$addon")" | sort -n | tail -1)" = "$newest_source" ]; then
  echo "setup: building the native addon"
  "$node" native/build.ts
fi
"$node" proto/build.ts
"$node" services/shared/stripped/fill.ts
