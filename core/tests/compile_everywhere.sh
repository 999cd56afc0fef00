#!/bin/sh
# Compile the core, warnings as errors, with each compiler that is installed; say which are not.
set -eu
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for compiler in gcc clang aarch64-linux-gnu-gcc; do
    if ! command -v $compiler >/dev/null; then
        echo "core: $compiler is not installed: not tried"
        continue
    fi
    build="$compiler -std=gnu11 -D_GNU_SOURCE -O2 -Wall -Wextra -Wpointer-arith -Wshadow -Wstrict-prototypes \
        -Wmissing-prototypes -Wundef -Werror -fPIC -shared -Iinclude -Isrc"
    $build src/*.c -o "$out/core.so"
    for blocks in plain guarded; do
        $build -fno-builtin preload/malloc.c preload/$blocks.c -o "$out/preload.so"
    done
    echo "core: $compiler builds it without warnings"
done
