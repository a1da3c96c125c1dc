#!/usr/bin/env bash
# Installs NVIDIA's compiler and disassembler from PyPI, pinned by version and checksum: about 100
# MB to download, 280 MB on disk. They are proprietary, under NVIDIA's license, and are used to
# compile kernels and to check the compiled code.
# Usage: dev/setup_nvcc.sh [--unless-found]
#
# Afterwards nvcc and cuobjdump are in build/cuda/nvidia/cu13/bin. Running it again does nothing
# unless the pins have changed. With --unless-found it also does nothing if the machine has an nvcc
# where the build looks for one.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
dir=$root/build/cuda
pins=$root/dev/requirements-nvcc.txt
nvcc=$dir/nvidia/cu13/bin/nvcc

die() { echo "setup_nvcc: $*" >&2; exit 1; }

# Requires 12.8 or newer, like crates/kernel-build/src/nvcc.rs.
new_enough() {
    local version
    version=$("$1" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
    read -r major minor <<<"$version" && [ -n "$minor" ] && [ $((major * 100 + minor)) -ge 1208 ]
}

if [ "${1:-}" = --unless-found ]; then
    [ -z "${NVCC:-}" ] || exit 0 # the build uses this one or none
    for candidate in "${CUDA_HOME:-}/bin/nvcc" "${CUDA_PATH:-}/bin/nvcc" "$(command -v nvcc)" /usr/local/cuda/bin/nvcc; do
        if [ -x "$candidate" ] && new_enough "$candidate"; then exit 0; fi
    done
elif [ $# -gt 0 ]; then
    die "unknown argument $1; see the head of this file"
fi

if [ -x "$nvcc" ] && cmp -s "$pins" "$dir/installed-pins"; then
    exit 0
fi

case "$(uname -s)-$(uname -m)" in
    Linux-x86_64 | Linux-aarch64) ;;
    *) die "nvcc is available for Linux on x86_64 and aarch64, but this is $(uname -s) on $(uname -m)" ;;
esac
python=${PYTHON:-python3}
command -v "$python" >/dev/null ||
    die "$python not found; install Python 3, or CUDA 13.0 from https://developer.nvidia.com/cuda-downloads, or set PYTHON"

rm -rf "$dir/nvidia" "$dir/venv" "$dir"/nvidia_*.dist-info "$dir/installed-pins"
mkdir -p "$dir"
log=$dir/setup.log
if "$python" -m pip --version >/dev/null 2>&1; then
    pip=("$python" -m pip)
else
    "$python" -m venv "$dir/venv" >>"$log" 2>&1 ||
        die "$python has neither pip nor venv; on Debian and Ubuntu, run apt install python3-venv"
    pip=("$dir/venv/bin/python" -m pip)
fi

echo "setup_nvcc: installing nvcc 13.0 into $dir (about 100 MB to download; log: $log)"
"${pip[@]}" --disable-pip-version-check --no-input install --no-deps --only-binary :all: --require-hashes \
    --target "$dir" --requirement "$pins" >>"$log" 2>&1 ||
    die "pip failed; is the network reachable? See $log"
"$nvcc" --version >>"$log" 2>&1 || die "$nvcc does not run; see $log"
for tool in cuobjdump nvdisasm; do
    "${nvcc%/*}/$tool" --version >>"$log" 2>&1 || die "${nvcc%/*}/$tool does not run; see $log"
done
cp "$pins" "$dir/installed-pins"
echo "setup_nvcc: ready, $nvcc"
