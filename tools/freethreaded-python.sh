#!/bin/sh
# A free-threaded CPython 3.13 from Debian's sources, built once into the user's cache; prints its path.
# With `tsan` as argument: the same under ThreadSanitizer, by clang, as CPython's own CI builds it. It runs where
# it was built, for installing compiles the library's thousands of files with an interpreter that is ten times slower.
#
# apt runs on a state of its own (sources, lists, cache), so that the machine's sources stay as they are.
set -eu

variant=${1:-plain}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pagemap
case $variant in
plain) python=$cache/python3.13t/bin/python3.13t ;;
tsan) python=$cache/python3.13t-tsan/python ;;
*) echo "usage: $0 [plain|tsan]" >&2 && exit 2 ;;
esac
built=$cache/.built-$variant
if [ -e "$built" ]; then
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

# build DIR OPTION...: configured and made in DIR.
build() {
    rm -rf "$1"
    mkdir -p "$1"
    cd "$1"
    shift
    "$source/configure" -q --disable-gil "$@"
    make -s -j"$(nproc)"
}

log=$cache/build-$variant.log
(
    case $variant in
    plain)
        build "$cache/build-plain" --prefix="$cache/python3.13t"
        make -s install
        rm -rf "$cache/build-plain"
        ;;
    tsan)
        # Races that are reported while CPython builds itself must not end the build.
        export CC=clang TSAN_OPTIONS=report_bugs=0
        build "$cache/python3.13t-tsan" --with-thread-sanitizer
        ;;
    esac
) >"$log" 2>&1 || {
    tail -n 30 "$log" >&2
    exit 1
}
touch "$built"
echo "$python"
