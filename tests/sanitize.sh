#!/bin/sh
# The C tests under AddressSanitizer + UBSan and under ThreadSanitizer; the Python tests on an extension
# built with AddressSanitizer.
#     sanitize.sh PYTHON    (an environment with mmkit's test extra installed)
set -eu
python=$1
for sanitizer in address,undefined thread; do
    build=build/sanitize-${sanitizer%,*}
    cmake -S core -B "$build" -DMMK_WERROR=ON -DMMK_SANITIZE=$sanitizer >/dev/null
    cmake --build "$build" --parallel >/dev/null
    echo "== the core under $sanitizer"
    ctest --test-dir "$build" --output-on-failure
done

echo "== the extension under address"
venv=build/sanitize-venv
[ -x $venv/bin/python ] || "$python" -m venv $venv
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# What the tests need comes from the environment given; only mmkit itself is built anew.
$venv/bin/python -c "import sysconfig, pathlib; pathlib.Path(sysconfig.get_path('purelib'), 'base.pth').write_text('$site')"
"$python" -m pip --python $venv/bin/python install --quiet --no-build-isolation --no-deps --force-reinstall . \
    -C build-dir=build/sanitize-extension -C cmake.define.MMK_SANITIZE=address,undefined \
    -C cmake.build-type=RelWithDebInfo -C install.strip=false
# The tour is left out: the sanitizer's malloc needs no break, and its mlock does nothing.
# The interpreter is not built with the sanitizer, so its runtime comes first by preloading; python may be
# a shell script (pyenv), whose shell would get it too: take the real binary.
interpreter=$($venv/bin/python -c 'import os, sys; print(os.path.realpath(sys.executable))')
PYTHONPATH=$($venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'):$site \
PYTHONMALLOC=malloc MMKIT_SANITIZED=address MMKIT_EXAMPLES=10 \
ASAN_OPTIONS=detect_leaks=0:handle_segv=0:handle_sigbus=0:allocator_may_return_null=1 \
LD_PRELOAD=$(gcc -print-file-name=libasan.so):$(gcc -print-file-name=libubsan.so) \
    "$interpreter" -m pytest -q -p no:cacheprovider --ignore-glob 'tests/unit/test_tour*.py' tests
