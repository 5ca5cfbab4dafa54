#!/bin/sh
# A batch on several machines with GNU parallel: a share each, named in `hosts`, where `:` is this machine. The folder is
# one that all of them see. Tried with GNU parallel 20221122 and three shares on one machine.
set -eu
shares=$(wc -l < hosts)
seq "$shares" | parallel --sshloginfile hosts --workdir "$PWD" --jobs 1 --line-buffer --tag \
  sora batch jobs.toml --folder videos --shard "{}/$shares" --progress plain
