#!/bin/sh
# Do dvc.lock and the committed figures come from this code and these parameters, and weights/ from dvc.lock? Data and
# checkpoints may be absent.
set -eu
status=$(dvc repro --dry --allow-missing 2>&1) || { echo "$status"; exit 1; }
case "$status" in
  *"Data and pipelines are up to date"*) echo "dvc.lock is fresh" ;;
  *) echo "$status"; echo "error: the committed figures are stale: run 'make repro' and commit dvc.lock, metrics/ and plots/" >&2; exit 1 ;;
esac
python -m scripts.weights --check
