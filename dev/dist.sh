#!/usr/bin/env bash
# Packs programs into dist/warpsmith-VERSION-TARGET.tar.xz, and writes dist/SHA256SUMS. `make dist`
# builds the programs and calls this.
# Usage: dev/dist.sh DIRECTORY-OF-PROGRAMS
#
# The name also says what differs from a release: kernels for some GPUs (-sm_90a) or none (-cpu),
# MPI (-mpi), uncommitted changes (-changed). The same programs and files give the same bytes: the
# date is that of the commit, or SOURCE_DATE_EPOCH. PACK=0 compresses fast rather than small.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { echo "dist: $*" >&2; exit 2; }

[ $# = 1 ] || die "expected the directory of the programs; see the head of this file"
bin=$1
programs=(train_gpt2 train_gpt2cu warpsmith)
for tool in python3 objdump strip strings tar xz sha256sum; do
    command -v "$tool" >/dev/null || die "$tool not found; apt install python3 binutils tar xz-utils coreutils"
done

# --- what is packed

about=$("$bin/warpsmith" --version)
row() { sed -n "s/^$1  *//p" <<<"$about"; }
for program in "${programs[@]}"; do
    [ "$("$bin/$program" -V)" = "$program $("$bin/warpsmith" -V | cut -d' ' -f2-)" ] ||
        die "$bin/$program and $bin/warpsmith are of different builds; run make dist"
done
version=$("$bin/warpsmith" -V | cut -d' ' -f2)
commit=$(row commit)
built=$(row built)
target=$(sed 's/^for \([^ ,]*\).*/\1/; s/-unknown//' <<<"$built")
[[ $built == *", release, "* ]] || die "$bin/warpsmith is built $built; expected the release profile"
[[ $built != *" with "* ]] || die "$bin/warpsmith is built $built, expected for any CPU; unset -C target-cpu"
[[ $commit =~ ^[0-9a-f]{40}\ ([0-9-]{10}) ]] ||
    die "the commit is $commit; expected a git checkout, or WARPSMITH_COMMIT='HASH DATE'"
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(date -u -d "${BASH_REMATCH[1]}" +%s)}

kinds=$(row 'GPU kernels')
if [[ $kinds == none* ]]; then
    [ "${KERNEL_ARCHES:-}" = none ] ||
        die "the programs have no kernels for GPUs ($kinds); run make nvcc, or ask for it with KERNEL_ARCHES=none"
    suffix=-cpu
elif [[ $kinds == *"PTX of"* ]]; then
    suffix=
else
    suffix=-$(sed 's/, by nvcc.*//; s/, /-/g' <<<"$kinds")
fi
[ "$(row features)" = none ] || suffix+=-$(row features)
[[ $commit != *changes ]] || suffix+=-changed
name=warpsmith-$version-$target$suffix

# --- what the programs need of another machine

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
root=$stage/$name
mkdir "$root"
for program in "${programs[@]}"; do
    strip -o "$root/$program" "$bin/$program"
done
cargo_home=${CARGO_HOME:-$HOME/.cargo}
for program in "${programs[@]}"; do
    needed=$(objdump -p "$root/$program" | sed -n 's/^ *NEEDED *//p')
    # libgcc_s unwinds the stack; glibc needs it, too, so every system has it.
    allowed='^(libc|libm|libdl|libpthread|librt|libgcc_s|ld-linux-[a-z0-9_-]+)\.so\.[0-9]+$'
    [[ $suffix != *-mpi* ]] || allowed+='|^libmpi'
    others=$(grep -vE "$allowed" <<<"$needed" || true)
    [ -z "$others" ] || die "$program needs $(xargs <<<"$others"); expected the C library alone"
    strings -n 6 "$root/$program" >"$stage/strings"
    for place in "$PWD/" "$cargo_home/" "${RUSTUP_HOME:-$HOME/.rustup}/"; do
        ! grep -qF -- "$place" "$stage/strings" ||
            die "$program contains $place, a place of this machine; build it with REMAP=1 and without RUSTFLAGS"
    done
done
glibc=$(objdump -T "${programs[@]/#/$root/}" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1 | sed 's/_/ /')

# --- the archive

cp -R README.md CHANGELOG.md ARCHITECTURE.md CONTRIBUTING.md LICENSE docs recipes "$root/"
mkdir "$root/benches"
cp -R benches/record "$root/benches/" # read by `warpsmith plan` and `warpsmith roofline`
features=$(row features)
dev/licenses.py "$root/licenses" --target "$(sed 's/^for \([^ ,]*\).*/\1/' <<<"$built")" --features "${features#none}"
{
    echo "warpsmith $version"
    for name_of in commit built features 'GPU kernels' 'emulated device'; do
        printf '%-16s %s\n' "$name_of" "$(row "$name_of")"
    done
    echo "needs            Linux with ${glibc/GLIBC/glibc} or newer"
} >"$root/BUILD.txt"
chmod -R u=rwX,go=rX "$root"

mkdir -p dist
archive=dist/$name.tar.xz
# The three programs have most of their bytes in common, which a window of 96 MiB sees: a third of
# the size.
tar -C "$stage" -c --sort=name --format=ustar --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner "$name" |
    xz -T1 --lzma2="preset=${PACK:-6},dict=96MiB" >"$stage/archive"
mv "$stage/archive" "$archive"
(cd dist && sha256sum warpsmith-*.tar.xz >SHA256SUMS)
echo "$archive: $(du -m --apparent-size "$archive" | cut -f1) MiB; needs ${glibc/GLIBC/glibc} or newer"
