#!/usr/bin/env bash
# Checks whether this machine can build the feature `mpi`: prints `--features mpi` if so, and the MPI
# on standard error.
# Usage: dev/find_mpi.sh [0|1]      0: without MPI; 1: MPI is required; no argument: if available
set -euo pipefail

asked=${1:-}
case $asked in
0) exit 0 ;;
1 | '') ;;
*) echo "MPI=$asked: expected 0 (without), 1 (required), or nothing (if it can be built)" >&2 && exit 2 ;;
esac

lacks() {
    [ -z "$asked" ] || { echo "MPI=1: $1" >&2 && exit 2; }
    exit 0
}

# The existence of mpicc is not enough: Debian has it in a package without headers. It must compile a
# program that runs.
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/version.c" <<'C'
#include <mpi.h>
#include <stdio.h>
int main(void) {
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int length;
    return MPI_Get_library_version(text, &length) || printf("%s\n", text) < 0;
}
C
"${MPICC:-mpicc}" "$dir/version.c" -o "$dir/version" 2>/dev/null && "$dir/version" >"$dir/text" 2>/dev/null ||
    lacks "no MPI that ${MPICC:-mpicc} can build with; apt install libopenmpi-dev (or set MPICC)"
name=$(sed -n '1{s/,.*//;s/ *Version *: */ /;s/[[:space:]]\+/ /g;p}' "$dir/text")

# libclang, by which bindgen reads MPI's header, in the places where its crate searches; and clang's
# own headers.
shopt -s nullglob
if [ -n "${LIBCLANG_PATH:-}" ]; then
    places=("$LIBCLANG_PATH" "$(dirname "$LIBCLANG_PATH")")
else
    IFS=: read -ra places <<<"${LD_LIBRARY_PATH:-}:${LIBRARY_PATH:-}:$(llvm-config --libdir 2>/dev/null || true)"
    places+=(/usr/lib/llvm*/lib /usr/lib/*-linux-gnu /usr/lib64/llvm*/lib64 /usr/lib64 /usr/lib /usr/local/llvm*/lib /usr/local/lib
        /Library/Developer/CommandLineTools/usr/lib)
fi
clang=
for place in "${places[@]}"; do
    [ -n "$place" ] || continue
    for library in "$place"/libclang{,-*}.so* "$place"/libclang.dylib; do
        [[ -e $library && $library != *libclang-cpp* ]] || continue
        # Beside the library, or beside the file that it links to; on Debian with LLVM of the same
        # version.
        real=$(dirname "$(readlink -f "$library")")
        version=$(basename "$library" | sed -n 's/[^0-9]*\([0-9]*\).*/\1/p')
        headers=("$place"/clang/*/include/stddef.h "$real"/clang/*/include/stddef.h /usr/lib/clang/*/include/stddef.h
            "/usr/lib/llvm-$version/lib/clang"/*/include/stddef.h)
        [ ${#headers[@]} = 0 ] || { clang=$library && break 2; }
    done
done
[ -n "$clang" ] || lacks "$name was found, but not libclang, which reads its header; apt install libclang-dev (or set LIBCLANG_PATH)"

echo "building with $name; if that fails, use make MPI=0" >&2
echo --features mpi
