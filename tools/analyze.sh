#!/bin/sh
# clang-tidy (.clang-tidy) and cppcheck over the C sources: tools/analyze.sh PYTHON. Silence is success.
set -eu

cd "$(dirname "$0")/.."
include=$("$1" -c 'import sysconfig; print(sysconfig.get_path("include"))')
for tool in clang-tidy cppcheck; do
    command -v "$tool" >/dev/null || { echo "needs $tool (apt-get install $tool)" >&2 && exit 2; }
done
clang-tidy --quiet src/*.c -- -std=gnu11 -D_GNU_SOURCE -DPy_LIMITED_API=0x030B0000 -isystem "$include" 2>/dev/null

# Python's headers are not read, so the macros that are statements are named. What is suppressed: variables that
# it believes unused behind those, members that only give a kernel's structure its layout, a taste for more
# parentheses, and one condition that it takes for always false because it forgets that the sum wraps around.
cppcheck --quiet --error-exitcode=1 --std=c11 --inline-suppr --enable=warning,performance,portability,style \
    -I src -D__x86_64__ '-DPy_BEGIN_ALLOW_THREADS={' '-DPy_END_ALLOW_THREADS=}' '-DPy_RETURN_NONE=return NULL' \
    --suppress=missingIncludeSystem --suppress=unusedStructMember --suppress=clarifyCalculation \
    --suppress=knownConditionTrueFalse:src/maps.c src
