#!/bin/sh
# The tests on a free-threaded CPython with the GIL off: tools/freethreaded.sh VARIANT [PYTEST ARGUMENT...]
#
# plain  the whole suite, or what the arguments name.
# tsan   the interpreter and the extension under ThreadSanitizer: what threads share. A race in either ends the
#        run with an error, but those that CPython's own list for free-threaded builds says to be known.
#
# The interpreters are built once (freethreaded-python.sh), their packages are installed once, all in the user's
# cache. The sources are copied to build/freethreaded-*, so the environment in use keeps its extension.
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
variant=${1:-plain}
[ $# -eq 0 ] || shift
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pagemap
venv=$cache/venv-3.13t
tree=$here/build/freethreaded-$variant

interpreter=$("$here/tools/freethreaded-python.sh" plain)
if [ ! -e "$venv/.installed" ]; then
    "$interpreter" -m venv --clear "$venv"
    # The extras that have wheels for free-threaded builds; the tests of the others say that they are missing.
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary=:all: 'numpy<2.5' hypothesis \
        pytest pytest-timeout pytest-benchmark setuptools wheel click rich matplotlib pyarrow pandas
    touch "$venv/.installed"
fi
"$here/tools/copy-tree.sh" "$tree"
cd "$tree"
export PYTHON_GIL=0 PYTHONDONTWRITEBYTECODE=1
case $variant in
plain)
    python=$venv/bin/python
    export PYTHONPATH="$tree"
    ;;
tsan)
    python=$("$here/tools/freethreaded-python.sh" tsan)
    # The packages are the same: what they do in C is not watched.
    PYTHONPATH=$tree:$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
    # And one that is not on that list: as it ends, it clears the states of daemon threads that have just begun.
    known=$tree/build/suppressions.txt
    mkdir -p "$tree/build"
    cat "$cache/python3.13-source/Tools/tsan/suppressions_free_threading.txt" - >"$known" <<'END'

race_top:_Py_brc_remove_thread
END
    TSAN_OPTIONS=suppressions=$known
    export PYTHONPATH TSAN_OPTIONS
    [ $# -gt 0 ] || set -- tests/test_region_buffer.py tests/test_threads.py tests/test_threads_stress.py
    ;;
*) echo "usage: $0 plain|tsan [PYTEST ARGUMENT...]" >&2 && exit 2 ;;
esac
# The names of commands and the version are found by what egg_info writes.
"$python" setup.py -q egg_info build_ext --inplace --force
"$python" -c '
import sys, pathlib, pagemap._pagemap as module
assert not sys._is_gil_enabled()
assert pathlib.Path(module.__file__).parent.parent == pathlib.Path.cwd(), module.__file__'
# Importing pagemap must not switch the GIL back on, as an extension without Py_mod_gil does.
env -u PYTHON_GIL "$python" -W error -c 'import sys, pagemap._pagemap; assert not sys._is_gil_enabled()'
"$python" -m pytest -q -p no:cacheprovider "$@"
