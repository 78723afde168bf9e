#!/usr/bin/env bash
# Make a model's best checkpoint its release, and write it out; unless it is worse than the release
# there is: then exit with 20, and nothing has changed.
#
#   release.sh MODEL [CONDITION]      the condition that stops it; default: acc < base.acc
#
# $CKREG_REGISTRY says where the registry is. The path written is the last line on stdout.
set -euo pipefail

model=${1:?a model: release.sh resnet50}
condition=${2:-acc < base.acc}

new=$(ckreg best "$model" -q) # looked up once: a later save doesn't slip in between

code=0
base=$(ckreg show "$model@release" -q) || code=$?
case $code in
  0) ckreg compare "$new" "$base" --fail-if "$condition" ;; # 20 when it holds: the script ends
  3) echo "$model has no release yet: $new is the first" >&2 ;;
  *) exit "$code" ;;
esac

ckreg pull "$new" --only weights --force -o "${model//\//-}.pt"
ckreg alias "$new" release >&2 # last: what failed before has released nothing
