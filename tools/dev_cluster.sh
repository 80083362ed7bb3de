#!/bin/bash
# A private Slurm on this machine for testing: `up` starts it, `down` removes it. Needs root.
# `up` prints a line that exports SLURM_CONF, which every Slurm command reads:
#
#   eval "$(tools/dev_cluster.sh up)"
#   sinfo
#   tools/dev_cluster.sh down
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=$here/../.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" "$here/dev_cluster.py" "$@"
