#!/usr/bin/env bash
# Tries out an archive of `make dist` as somebody does who has nothing else: checks it, unpacks it
# into an empty directory, trains two steps without a GPU, and samples.
# Usage: dev/test_dist.sh dist/warpsmith-….tar.xz
set -euo pipefail

die() { echo "test_dist: $*" >&2; exit 1; }

[ $# = 1 ] || die "expected an archive; see the head of this file"
archive=$(realpath "$1")
(cd "$(dirname "$archive")" && grep -qF "$(basename "$archive")" SHA256SUMS && sha256sum --quiet -c SHA256SUMS) ||
    die "$archive: not as SHA256SUMS has it"

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
tar -C "$dir" -xf "$archive"
name=$(basename "$archive" .tar.xz)
[ "$(ls "$dir")" = "$name" ] || die "expected the one directory $name, found $(ls "$dir")"
cd "$dir/$name"
for file in train_gpt2 train_gpt2cu warpsmith README.md LICENSE BUILD.txt licenses/crates.txt licenses/rust.html \
    docs/flags.md recipes/common.sh; do
    [ -s "$file" ] || die "$file: missing or empty"
done
odd=$(find . ! -user "$(id -un)" -o -perm /022 -o -newermt "@$(($(date +%s) + 1))" | head)
[ -z "$odd" ] || die "owner, permissions or time of $odd"

run() { env -i PATH=/usr/bin:/bin "$@"; }
for program in train_gpt2 train_gpt2cu warpsmith; do
    run "./$program" --version >about || die "$program --version fails"
    for row in commit 'GPU kernels'; do
        [ "$(grep "^$row  " about)" = "$(grep "^$row  " BUILD.txt)" ] || die "$program --version is not as BUILD.txt"
    done
    run "./$program" --help | grep -q '^Usage: ' || die "$program --help"
done
cat about
run ./warpsmith stories -o data --tokens 20000
run ./train_gpt2 -i 'data/*_train_*.bin' -j 'data/*_val_*.bin' -o log --layers 2 --heads 2 --channels 32 \
    -b 2 -t 64 -l 1e-3 -x 2 -v 1 -m 1 -s 0 | tee console
grep -q '^step *2/2' console || die "train_gpt2 did not end with step 2"
run ./warpsmith sample --model log --prompt 'Once upon a time' --max-tokens 8 | grep -q '^Once upon a time' ||
    die "sample does not continue its prompt"
if grep -q '^emulated device  *yes' about; then
    run ./train_gpt2cu --device emulated -i 'data/*_train_*.bin' --layers 1 --heads 1 --channels 64 -b 1 -t 16 -x 1 \
        -v 0 -s 0 | grep -q '^step *1/1' || die "train_gpt2cu on the emulated device"
fi
run ./warpsmith plan -e d12 -b 4 -t 1024 >plan || die "plan"
echo "test_dist: $name works"
