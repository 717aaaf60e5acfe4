#!/bin/sh
# Fuzzes the extension for a number of seconds for each target, from the corpus in tests/fuzz/corpus:
#   tools/fuzz.sh PYTHON SECONDS [TARGET...]
# Inputs that reach new code stay in build/fuzz/found; `tools/fuzz.sh PYTHON merge` adds the few that are
# needed to reach all of it to the corpus, `tools/fuzz.sh PYTHON leaks` replays the corpus under LeakSanitizer. An input that breaks something stays in build/fuzz as crash-*.
set -eu

python=$1
seconds=$2
shift 2
here=$(cd "$(dirname "$0")/.." && pwd)
build=$here/build/fuzz
corpus=$here/tests/fuzz/corpus
[ $# -gt 0 ] || set -- maps entries calls
command -v clang >/dev/null || { echo "fuzzing needs clang with libFuzzer (apt-get install clang)" >&2 && exit 2; }

# The interpreter's own headers and library, by whatever name.
flags=$("$python" -c '
from sysconfig import get_config_var as var, get_path
library = var("LDLIBRARY").removeprefix("lib").removesuffix(".so").removesuffix(".a")
print("-isystem", get_path("include"), "-L" + var("LIBDIR"), "-l" + library, "-Wl,-rpath," + var("LIBDIR"))
')
# What lies behind an interpreter, and is not beside the extension: PYTHONHOME, as there is no venv here.
PYTHONHOME=$("$python" -c 'import sys; print(sys.base_prefix)')
export PYTHONHOME
mkdir -p "$build"
cd "$build"

# The interpreter keeps what it allocates to itself; malloc shows every block to the sanitizer.
export PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
rm -f ./*.o
# shellcheck disable=SC2086 # several flags
clang -std=gnu11 -g -O1 -Wall -Wextra -Wno-unused-command-line-argument -fno-omit-frame-pointer \
    -DPy_LIMITED_API=0x030B0000 -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all \
    -c $flags "$here"/src/*.c
for target in "$@"; do
    # shellcheck disable=SC2086
    clang -std=gnu11 -g -O1 -Wall -Wextra -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
        "$here"/tests/fuzz/harness.c "$here/tests/fuzz/fuzz_$target.c" ./*.o $flags -o "fuzz_$target"
    mkdir -p "found/$target" "$corpus/$target"
    if [ "$seconds" = merge ]; then
        "./fuzz_$target" -set_cover_merge=1 -max_len=2048 "$corpus/$target" "found/$target"
    elif [ "$seconds" = leaks ]; then
        ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 "./fuzz_$target" -runs=0 -verbosity=0 "$corpus/$target"
        echo "$target: $(find "$corpus/$target" -type f | wc -l) inputs leave nothing behind"
    else
        "./fuzz_$target" -max_total_time="$seconds" -max_len=2048 -timeout=10 -rss_limit_mb=2048 \
            -print_final_stats=1 -verbosity=1 "found/$target" "$corpus/$target"
    fi
done
