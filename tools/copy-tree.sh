#!/bin/sh
# A copy of the working tree, tracked or not but never ignored, to build an extension of its own in: copy-tree.sh DIR
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
rm -rf "$1/src" "$1/pagemap" "$1/tests"
cd "$here"
git ls-files --cached --others --exclude-standard | while IFS= read -r file; do
    [ ! -e "$file" ] || echo "$file"
done | tar -T - -cf - | tar -C "$1" -xf -
