#!/bin/sh
# The whole pipeline on scikit-learn's digits, as a DVC experiment beside the working tree: nothing here changes.
set -eu
: "${GIT_AUTHOR_NAME:=demo}" "${GIT_AUTHOR_EMAIL:=demo@localhost}"
: "${GIT_COMMITTER_NAME:=$GIT_AUTHOR_NAME}" "${GIT_COMMITTER_EMAIL:=$GIT_AUTHOR_EMAIL}"
export GIT_AUTHOR_NAME GIT_AUTHOR_EMAIL GIT_COMMITTER_NAME GIT_COMMITTER_EMAIL

if ! git rev-parse --verify --quiet HEAD >/dev/null; then
  echo "error: an experiment starts from a commit; clone the project with git, or run 'git init && git add -A && git commit'" >&2
  exit 1
fi
dvc exp remove --quiet demo 2>/dev/null || true
# A net as small as its images: CIFAR's would take four times as long here, and learn no more
dvc exp run --temp --name demo -S dataset=digits -S 'models.whitened_cnn.widths=[16,32,64]'
dvc plots diff --quiet --out build/demo demo >/dev/null
echo
echo "handwritten digits 0-7, with 8 and 9 out of distribution:"
python -m scripts.summary demo
echo
echo "pictures:   build/demo/index.html and build/demo/static/"
echo "everything: dvc metrics diff HEAD demo    take it over: dvc exp apply demo"
echo "next:       make repro   (the CIFAR study)"
