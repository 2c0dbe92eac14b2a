#!/usr/bin/env bash
# Builds the image and unpacks it once into a file that all nodes start from: containers/build.sh FILE.sqsh [docker build options]
# FILE.sqsh lies on a file system that all nodes share. Needs docker with BuildKit, and enroot.
set -euo pipefail
out=$(realpath -m "${1:?a name for the image, such as /shared/images/r1mega.sqsh}")
shift
cd "$(dirname "$0")/.."
[[ $out == *.sqsh ]] || { echo "build: $out does not end in .sqsh" >&2; exit 2; }
[[ ! -e $out ]] || { echo "build: $out is there already; jobs may be running from it, so choose another name" >&2; exit 2; }
tag=r1mega:$(git rev-parse --short=12 HEAD)
DOCKER_BUILDKIT=1 docker build -f containers/Dockerfile -t "$tag" "$@" .
enroot import -o "$out.partial" "dockerd://$tag"
mv "$out.partial" "$out"
echo "$out: $tag"
