# SLURM's own command, asked again while the controller is away: `ask_again SECONDS COMMAND ...`. For the files in bin/, which the workflow
# puts in front of the PATH. Without them Snakemake's plugin takes a silent controller for one that has forgotten the jobs, and waits for
# ever. Any other answer is passed on, errors too. A line in .snakemake/slurm/away.log says how long the controller was away.

# The commands behind those of bin/.
PATH=$(printf '%s' "$PATH" | tr ':' '\n' | grep -vxF "$(cd "$(dirname "$0")" && pwd)" | paste -s -d : -)
export PATH
kept=${BITPLAN_SLURM_FOLDER:-.snakemake/slurm}
mkdir -p "$kept"

ask_again() {
    patience=$1
    shift
    began=$(date +%s)
    tries=0
    answer=$(mktemp "$kept/answer.XXXXXX")
    while :; do
        tries=$((tries + 1))
        "$@" >"$answer" 2>"$answer.error" </dev/null
        code=$?
        waited=$(($(date +%s) - began))
        if ! grep -q "Unable to contact slurm controller" "$answer.error" || [ "$waited" -ge "$patience" ]; then break; fi
        sleep 1
    done
    if [ "$tries" -gt 1 ]; then
        echo "$(date +%H:%M:%S) the controller was asked $tries times in $waited s by $1, and $([ $code -eq 0 ] && echo answered || echo 'did not answer')" >>"$kept/away.log"
    fi
    # Snakemake passes on what sbatch says of a single step, but not of a group of steps.
    [ $code -eq 0 ] || [ "$1" != sbatch ] || cat "$answer.error" >>"$kept/refused.log"
    cat "$answer"
    cat "$answer.error" >&2
    rm -f "$answer" "$answer.error"
    return $code
}
