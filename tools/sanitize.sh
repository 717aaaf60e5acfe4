#!/bin/sh
# The tests with the extension under sanitizers: tools/sanitize.sh PYTHON [undefined|address|leaks]...
#
# undefined  UndefinedBehaviorSanitizer, the whole suite, Python in its development mode. (Of its instructions
#            there are more than were recorded, so they are not counted.)
# address    AddressSanitizer and UndefinedBehaviorSanitizer, the tests that call the extension; every block of
#            the interpreter's comes from malloc, so that it is watched too.
# leaks      LeakSanitizer: the fuzzer's corpus is replayed by a program that holds nothing between two
#            inputs, so whatever cannot be reached afterwards, blocks or Python objects, was lost by a call.
#
# The sources are copied to build/sanitize-*, so the environment in use keeps its extension.
set -eu

python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
shift
[ $# -gt 0 ] || set -- undefined address leaks
here=$(cd "$(dirname "$0")/.." && pwd)
common="-g -O1 -fno-omit-frame-pointer -fno-sanitize-recover=all"
export UBSAN_OPTIONS=print_stacktrace=1 PYTHONDONTWRITEBYTECODE=1

# copy NAME FLAGS: the working tree in build/NAME, with the extension built with these flags.
copy() {
    tree=$here/build/$1
    "$here/tools/copy-tree.sh" "$tree"
    (cd "$tree" && CFLAGS="$common $2" "$python" setup.py -q build_ext --inplace --force)
    cd "$tree"
    export PYTHONPATH="$tree"
    LD_PRELOAD=$preload "$python" -c "import pathlib, pagemap._pagemap as m; assert pathlib.Path(m.__file__).is_relative_to('$tree')" ||
        exit 1
}

# What AddressSanitizer makes senseless: its shadow is 14 TiB of mapped address space, of this process and of every
# target, through which the `read` engine would walk for minutes; the freed memory that it keeps back grows where
# memory must not; it cannot live under a limit of address space; a library that is loaded before all others is
# shared by as many processes as there are just then; and what the examples say of programs (how much they write
# in a second) is not so of these. All of it runs with `undefined`.
beyond_shadow="
    --ignore=tests/test_analysis.py --ignore=tests/test_cli.py --ignore=tests/test_fuzz_corpus.py
    --ignore=tests/test_docs.py --ignore=tests/test_examples.py --ignore=tests/test_instructions.py
    --ignore=tests/test_leaks.py --ignore=tests/test_out_of_resources.py --ignore=tests/test_plot.py
    --ignore=tests/test_soak.py --ignore=tests/test_targets_that_change.py
    --deselect=tests/test_another_process.py::test_as_much_is_resident_as_smaps_says
    --deselect=tests/test_another_process.py::test_the_engines_agree_about_all_of_it
    --deselect=tests/test_another_process.py::test_the_one_liner
    --deselect=tests/test_bad_arguments.py::test_batches_that_no_memory_holds
    --deselect=tests/test_physical.py::test_each_vma_is_that_of_smaps
    --deselect=tests/test_refused_processes.py::test_what_was_opened_with_privilege_stays_open_without[read]
    --deselect=tests/test_trace.py::test_a_day_of_samples_in_bounded_memory
"

for kind in "$@"; do
    preload=
    case $kind in
    undefined)
        copy sanitize-undefined -fsanitize=undefined
        "$python" -X dev -m pytest -q -p no:cacheprovider --ignore=tests/test_instructions.py
        ;;
    address)
        # The C++ library beside it: it looks for the real `throw` when it starts, and only there.
        preload="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so.6)"
        (
            export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 PYTHONMALLOC=malloc
            copy sanitize-address -fsanitize=address,undefined
            # shellcheck disable=SC2086 # several options
            LD_PRELOAD=$preload "$python" -m pytest -q -p no:cacheprovider --timeout 240 $beyond_shadow
        )
        ;;
    leaks)
        "$here/tools/fuzz.sh" "$python" leaks
        ;;
    *) echo "no such sanitizer: $kind" >&2 && exit 2 ;;
    esac
done
