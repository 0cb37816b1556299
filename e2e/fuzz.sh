#!/usr/bin/env bash
# Runs every fuzz target of the tree for FUZZTIME (default 60s) on as many processors as FUZZCORES (default 1), one after another;
# FUZZ=regexp chooses targets. With KEEP=n the n smallest inputs of each that reach something new are put beside the test, to be
# committed: from then on `go test` runs them. A target that fails keeps none of the others from its turn; it is named at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
failed=$(mktemp)
trap 'rm -f "$failed"' EXIT
cache=$(go env GOCACHE)/fuzz/$(go list -m)
grep -rlE '^func Fuzz' --include='*_test.go' . | sort | while read -r file; do
  dir=$(dirname "$file")
  grep -oE '^func Fuzz[A-Za-z0-9_]*' "$file" | cut -d' ' -f2 | while read -r target; do
    [[ $dir/$target =~ ${FUZZ:-.} ]] || continue
    echo "== $target in $dir"
    # An input that is new is not made smaller for a minute, as it would by default: that minute is the target's.
    go test -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-60s}" -fuzzminimizetime 10x -parallel "${FUZZCORES:-1}" "$dir" </dev/null || echo "$target in $dir" >>"$failed"
    if [ "${KEEP:-0}" -gt 0 ] && [ -d "$cache/$dir/$target" ]; then
      mkdir -p "$dir/testdata/fuzz/$target"
      find "$cache/$dir/$target" -type f -size -2k -printf '%s %p\n' | sort -n | awk '{print $2}' | shuf -n "$KEEP" --random-source=<(yes) | xargs -r cp -t "$dir/testdata/fuzz/$target"
    fi
  done
done
if [ -s "$failed" ]; then
  echo "failed; the input that shows it lies in testdata/fuzz beside the test, to be committed with the cure:" >&2
  cat "$failed" >&2
  exit 1
fi
