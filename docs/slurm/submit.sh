#!/bin/bash
# The array, and the job that joins its parts once all of them have succeeded.
#     SOURCE=/data/photos BACKBONE=resnet50 PARTS=16 OUTPUT=photos.h5 docs/slurm/submit.sh
set -eu
here=$(dirname "$0")
export PARTS=${PARTS:-16}
array=$(sbatch --parsable --array="1-$PARTS" "$here/extract.sbatch")
join=$(sbatch --parsable --dependency="afterok:${array%%;*}" --kill-on-invalid-dep=yes "$here/join.sbatch")
echo "Array $array makes $PARTS parts, then job $join joins them."
