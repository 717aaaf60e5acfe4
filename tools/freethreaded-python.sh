#!/bin/sh
# A free-threaded CPython 3.13 from Debian's sources, built once into the user's cache; prints its path.
# With `tsan` as argument: the same under ThreadSanitizer, by clang, as CPython's own CI builds it.
#
# apt runs on a state of its own (sources, lists, cache), so that the machine's sources stay as they are.
set -eu

variant=${1:-plain}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pagemap
case $variant in
plain) prefix=$cache/python3.13t options= ;;
tsan) prefix=$cache/python3.13t-tsan options=--with-thread-sanitizer ;;
*) echo "usage: $0 [plain|tsan]" >&2 && exit 2 ;;
esac
python=$prefix/bin/python3.13t
if [ -x "$python" ]; then
    echo "$python"
    exit
fi

source=$cache/python3.13-source
if [ ! -x "$source/configure" ]; then
    state=$cache/apt-source
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb-src [signed-by=$keyring] http://deb.debian.org/debian trixie main" >"$state/sources.list"
    (
        cd "$state"
        set -- -qq -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=/dev/null \
            -o Dir::State::lists="$state/lists" -o Dir::Cache="$state/cache"
        apt-get "$@" update
        apt-get "$@" source --download-only python3.13
    ) >&2
    mkdir -p "$source.part"
    tar -C "$source.part" --strip-components=1 -xf "$state"/python3.13_*.orig.tar.xz
    mv "$source.part" "$source"
fi

build=$cache/build-$variant
rm -rf "$build"
mkdir -p "$build"
(
    cd "$build"
    if [ "$variant" = tsan ]; then
        # A race that is reported while CPython builds itself must not end the build.
        export CC=clang TSAN_OPTIONS=exitcode=0:report_bugs=0
    fi
    # shellcheck disable=SC2086 # one option or none
    "$source/configure" -q --prefix="$prefix" --disable-gil $options
    make -s -j"$(nproc)"
    make -s install
) >"$build.log" 2>&1 || {
    tail -n 30 "$build.log" >&2
    exit 1
}
rm -rf "$build"
echo "$python"
