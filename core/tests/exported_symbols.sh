#!/bin/sh
# The core exports mmk_* and nothing else, and knows nothing of Python; the libraries for LD_PRELOAD the malloc family.
#     exported_symbols.sh BUILD_DIR
set -eu
cmake -S "$(dirname "$0")/.." -B "$1" -DMMK_WERROR=ON >/dev/null
cmake --build "$1" --target mmkit mmkit_preload mmkit_preload_guard >/dev/null
library="$1/libmmkit.so"
foreign=$(nm -D --defined-only "$library" | awk '$3 !~ /^mmk_/ {print $3}')
python=$(nm -D "$library" | awk '$NF ~ /^_?Py/ {print $NF}')
if [ -n "$foreign$python" ]; then
    echo "the core exports or names what it must not:" $foreign $python >&2
    exit 1
fi
echo "core: exports mmk_* only"

family="aligned_alloc calloc free malloc malloc_usable_size memalign posix_memalign pvalloc realloc reallocarray valloc"
for library in "$1"/preload/libmmkit_preload.so "$1"/preload/libmmkit_preload_guard.so; do
    exported=$(nm -D --defined-only "$library" | awk '{print $3}' | LC_ALL=C sort | tr '\n' ' ')
    python=$(nm -D "$library" | awk '$NF ~ /^_?Py/ {print $NF}')
    if [ "$exported" != "$family " ] || [ -n "$python" ]; then
        echo "$library exports or names what it must not, or lacks something: $exported$python" >&2
        exit 1
    fi
done
echo "preload: exports the malloc family only"
