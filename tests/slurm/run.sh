#!/usr/bin/env bash
# The workflow on a SLURM cluster of its own: installs Debian's packages where they are missing and can be, then runs the tests of this folder.
# Where they can't be installed it says so in one line and ends well. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH=$PATH:/usr/sbin:/sbin
PACKAGES="slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge"

skip() {
    echo "SLURM tests skipped: $1"
    exit 0
}

installed() { command -v slurmctld slurmd sbatch munged >/dev/null; }

if ! installed; then
    command -v apt-get >/dev/null || skip "no SLURM here, and no apt-get to install it with ($PACKAGES)"
    [ "$(id -u)" = 0 ] || skip "no SLURM here, and only root can install it (apt-get install $PACKAGES)"
    # RUNLEVEL=1 keeps the packages' own services from being started.
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $PACKAGES; } \
        </dev/null >/tmp/bitplan-slurm-install.log 2>&1 || skip "apt-get could not install $PACKAGES (/tmp/bitplan-slurm-install.log)"
    installed || skip "Debian's SLURM was installed, and its programs are still not found"
fi
export BITPLAN_TESTS_COLD=1
exec python -m pytest tests/slurm -n 3 "$@"
