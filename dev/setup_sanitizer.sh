#!/usr/bin/env bash
# Installs NVIDIA's compute-sanitizer from PyPI, pinned by version and checksum, into
# DIR/compute-sanitizer (36 MB), so that it can be copied to a GPU machine without one. Usage:
# dev/setup_sanitizer.sh DIR
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
dir=${1:?usage: dev/setup_sanitizer.sh DIR}/compute-sanitizer
pins=$root/dev/requirements-sanitizer.txt
if [ -x "$dir/compute-sanitizer" ] && cmp -s "$pins" "$dir/installed-pins"; then exit 0; fi

unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
"${PYTHON:-python3}" -m pip --disable-pip-version-check --no-input --quiet install --no-deps --only-binary :all: \
    --require-hashes --target "$unpacked" --requirement "$pins" >&2 ||
    { echo "setup_sanitizer: pip could not install $pins; is the network reachable?" >&2; exit 1; }
rm -rf "$dir"
mkdir -p "$dir"
cd "$unpacked/nvidia/cu13/compute-sanitizer"
rm -rf docs include x86 # not needed; x86 is for 32-bit programs
cp -R . "$dir"
cp "$pins" "$dir/installed-pins"
