#!/usr/bin/env bash
# Sets up the Python environment of dev/: PyTorch (for CPU), transformers, numpy.
# Usage: dev/setup_venv.sh [--interop] [DIR]      (default: build/venv)
# --interop adds the packages of dev/interop.py. Running it again does nothing unless the pinned
# versions have changed.
set -euo pipefail

interop=
[ "${1:-}" != --interop ] || { interop=yes; shift; }
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${1:-$root/build/venv}
pins=("$root/dev/requirements.txt" "$root/dev/requirements-linux-pypi.txt")

die() { echo "setup_venv: $*" >&2; exit 1; }

python=${PYTHON:-python3}
command -v "$python" >/dev/null || die "$python not found; install Python 3.10 or newer, or set PYTHON"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "$python is $("$python" -V 2>&1); expected Python 3.10 or newer; set PYTHON to one"

log=$venv/setup.log
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@" >>"$log" 2>&1; }

# add_interop: installs the packages of dev/interop.py, unless these versions are there.
add_interop() {
    local pins=$root/dev/requirements-interop.txt
    ! cmp -s "$pins" "$venv/installed-interop-pins" || return 0
    echo "setup_venv: installing lm_eval, MLflow and others into $venv (log: $log)"
    pip install --no-deps --requirement "$pins" || die "pip failed; is the network reachable? See $log"
    cp "$pins" "$venv/installed-interop-pins"
}

if cat "${pins[@]}" | cmp -s - "$venv/installed-pins"; then
    [ -z "$interop" ] || add_interop
    exit 0
fi

"$python" -m venv "$venv" || die "cannot create $venv; on Debian and Ubuntu, run apt install python3-venv"
echo "setup_venv: installing PyTorch and transformers into $venv (log: $log)"
pip install --requirement "$root/dev/requirements.txt" ||
    die "pip failed; is the network reachable? See $log"

torch=$(sed -n 's/^# torch==/torch==/p' "$root/dev/requirements.txt")
if [ "$(uname -s)" != Linux ]; then
    pip install --no-deps "$torch" || die "pip failed on $torch; see $log"
# PyTorch's own index has a CPU build of 200 MB; PyPI has only the CUDA build, 2.5 GB with its
# libraries.
elif ! pip install --no-deps --retries 0 --timeout 10 --index-url https://download.pytorch.org/whl/cpu "$torch"; then
    echo "setup_venv: download.pytorch.org is not reachable; using the larger build from PyPI"
    pip install --no-deps "$torch" --requirement "$root/dev/requirements-linux-pypi.txt" ||
        die "pip failed on $torch; see $log"
fi

"$venv/bin/python" -c 'import torch, transformers' 2>>"$log" || die "torch or transformers does not load; see $log"
cat "${pins[@]}" >"$venv/installed-pins"
[ -z "$interop" ] || add_interop
echo "setup_venv: ready, use $venv/bin/python"
