#!/bin/sh
# The core exports mmk_* and nothing else, and knows nothing of Python.
#     exported_symbols.sh BUILD_DIR
set -eu
cmake -S "$(dirname "$0")/.." -B "$1" -DMMK_WERROR=ON >/dev/null
cmake --build "$1" --target mmkit >/dev/null
library="$1/libmmkit.so"
foreign=$(nm -D --defined-only "$library" | awk '$3 !~ /^mmk_/ {print $3}')
python=$(nm -D "$library" | awk '$NF ~ /^_?Py/ {print $NF}')
if [ -n "$foreign$python" ]; then
    echo "the core exports or names what it must not:" $foreign $python >&2
    exit 1
fi
echo "core: exports mmk_* only"
