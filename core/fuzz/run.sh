#!/bin/sh
# Fuzz the parser of maps and smaps under AddressSanitizer and UBSan, beginning with maps of this shell.
#     run.sh [SECONDS]
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-600}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! clang -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -g -O1 -std=gnu11 -D_GNU_SOURCE -Iinclude -Isrc \
    fuzz/fuzz_maps.c src/maps.c src/maps_fields.c -o "$work/fuzz" 2>"$work/why"; then
    echo "fuzz: not tried: clang with its fuzzer runtime is not installed (libclang-rt-*-dev): $(head -1 "$work/why")"
    exit 0
fi
mkdir "$work/corpus"
{ printf '\100'; cat /proc/self/maps; } >"$work/corpus/maps"
{ printf '\007'; head -100 /proc/self/smaps; } >"$work/corpus/smaps"
if ! "$work/fuzz" -max_total_time="$seconds" -max_len=2048 -timeout=10 -dict=fuzz/maps.dict -artifact_prefix="$work/" \
    "$work/corpus" >"$work/log" 2>&1; then
    tail -50 "$work/log"
    for found in "$work"/crash-* "$work"/timeout-* "$work"/oom-*; do
        if [ -f "$found" ]; then
            echo "fuzz: this does it:"
            od -c "$found"
        fi
    done
    exit 1
fi
echo "fuzz: the parser of maps survives: $(grep '^Done' "$work/log")"
