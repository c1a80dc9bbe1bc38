#!/bin/sh
# The whole pipeline on scikit-learn's digits, as a DVC experiment beside the working tree: nothing here changes.
set -eu
: "${GIT_AUTHOR_NAME:=demo}" "${GIT_AUTHOR_EMAIL:=demo@localhost}"
: "${GIT_COMMITTER_NAME:=$GIT_AUTHOR_NAME}" "${GIT_COMMITTER_EMAIL:=$GIT_AUTHOR_EMAIL}"
export GIT_AUTHOR_NAME GIT_AUTHOR_EMAIL GIT_COMMITTER_NAME GIT_COMMITTER_EMAIL

if ! head=$(git rev-parse --verify --quiet HEAD); then
  echo "error: an experiment starts from a commit; clone the project with git, or run 'git init && git add -A && git commit'" >&2
  exit 1
fi
dvc exp remove --quiet demo 2>/dev/null || true
# A net as small as its images: CIFAR's would take four times as long here, and learn no more. AutoAttack on fewer images
# with fewer queries: in full it alone takes longer than both trainings
dvc exp run --temp --name demo -S dataset=digits -S 'models.whitened_cnn.widths=[16,32,64]' \
  -S autoattack.images=50 -S autoattack.queries=1000

# An experiment is named after the commit that it starts from: another commit's may be called demo too
made=$(git rev-parse --verify --quiet "refs/exps/$(echo "$head" | cut -c1-2)/$(echo "$head" | cut -c3-)/demo") ||
  { echo "error: the demo has made no experiment; look at what dvc said above" >&2; exit 1; }

# The report is of a working tree, so one is made of what the experiment has committed, and goes again
out=build/demo
run=$out/run
rm -rf "$out"
mkdir -p "$out"
trap 'rm -rf "$run"' EXIT
git clone --quiet --shared --no-checkout . "$run"
git -C "$run" checkout --quiet --detach "$made"
(cd "$run" && PYTHONPATH=. python -m scripts.report >/dev/null)
mv "$run/build/report.html" "$out/report.html"

echo
echo "handwritten digits 0-7, with 8 and 9 out of distribution:"
python -m scripts.summary "$made"
echo
echo "read it:    $out/report.html, one page that opens without a network"
echo "everything: dvc metrics diff HEAD demo    take it over: dvc exp apply demo"
echo "next:       make repro   (the CIFAR study)"
