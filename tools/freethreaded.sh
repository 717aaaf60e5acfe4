#!/bin/sh
# The tests on a free-threaded CPython with the GIL off: tools/freethreaded.sh [PYTEST ARGUMENT...]
#
# The interpreter is built once (freethreaded-python.sh), its packages are installed once, both in the user's
# cache. The sources are copied to build/freethreaded, so the environment in use keeps its extension.
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
interpreter=$("$here/tools/freethreaded-python.sh")
venv=${XDG_CACHE_HOME:-$HOME/.cache}/pagemap/venv-3.13t
python=$venv/bin/python
tree=$here/build/freethreaded

if [ ! -e "$venv/.installed" ]; then
    "$interpreter" -m venv --clear "$venv"
    # The extras that have wheels for free-threaded builds; the tests of the others say that they are missing.
    "$python" -m pip install --quiet --disable-pip-version-check --only-binary=:all: 'numpy<2.5' hypothesis \
        pytest pytest-timeout pytest-benchmark setuptools wheel click rich matplotlib pyarrow pandas
    touch "$venv/.installed"
fi
"$here/tools/copy-tree.sh" "$tree"
cd "$tree"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
export PYTHONPATH="$tree" PYTHON_GIL=0 PYTHONDONTWRITEBYTECODE=1
"$python" -c '
import sys, pathlib, pagemap._pagemap as module
assert not sys._is_gil_enabled()
assert pathlib.Path(module.__file__).parent.parent == pathlib.Path.cwd(), module.__file__'
# Importing pagemap must not switch the GIL back on, as an extension without Py_mod_gil does.
env -u PYTHON_GIL "$python" -W error -c 'import sys, pagemap._pagemap; assert not sys._is_gil_enabled()'
"$python" -m pytest -q -p no:cacheprovider "$@"
