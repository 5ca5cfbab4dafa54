#!/bin/sh
# A batch on several machines with GNU parallel: a share each, named in `hosts`. The folder is one that all of them see.
set -eu
shares=$(wc -l < hosts)
seq "$shares" | parallel --sshloginfile hosts --workdir "$PWD" --jobs 1 --line-buffer --tag \
  sora batch jobs.toml --folder videos --shard "{}/$shares" --progress plain
