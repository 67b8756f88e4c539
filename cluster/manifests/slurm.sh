#!/bin/bash
# One experiment on the nodes of a Slurm job: Ray's head on the first, workers on the others.
#   sbatch slurm.sh photos.yaml --storage /shared/results --set data.path=/shared/photos
# What follows the script's name are the words of `captune run`. The experiment file, its storage, its data and
# $CAPTUNE_VENV, a virtual environment with Captune, must lie where every node sees them; so must $HOME.
#SBATCH --job-name=captune
#SBATCH --nodes=2
#SBATCH --exclusive
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --mem=64G
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180
set -euo pipefail

if (($# == 0)); then
    echo "usage: sbatch slurm.sh FILE [OPTIONS of captune run]" >&2
    exit 2
fi
venv=${CAPTUNE_VENV:-$HOME/captune}
export PATH=$venv/bin:$PATH
scratch=/tmp/captune-$SLURM_JOB_ID       # on each node; short, for the paths of Ray's sockets
export CAPTUNE_CACHE=${CAPTUNE_CACHE:-/tmp/captune-cache-$USER}

# A token of this job's own: on these machines others may run what they like.
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH=$HOME/.captune-token-$SLURM_JOB_ID
(umask 077 && head -c 32 /dev/urandom | base64 | tr -d '=+/\n' > "$RAY_AUTH_TOKEN_PATH")

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export RAY_ADDRESS=${nodes[0]}:6379       # --exclusive: no other job's Ray is on these nodes
on=(srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --ntasks-per-node=1)
steps=()                                 # process ids of the srun that hold Ray

# shellcheck disable=SC2329  # the trap calls it
cleanup() {
    if ((${#steps[@]})); then
        kill "${steps[@]}" 2> /dev/null || true
        for _ in {1..90}; do             # Ray drains a node for up to 30 s
            jobs -pr | grep -q . || break
            sleep 0.5
        done
        kill -KILL "${steps[@]}" 2> /dev/null || true
    fi
    "${on[@]}" --nodes="${#nodes[@]}" rm -rf "$scratch" || true
    rm -f "$RAY_AUTH_TOKEN_PATH"
}
trap cleanup EXIT

start=(ray start --block --disable-usage-stats --num-cpus="$SLURM_CPUS_PER_TASK")
"${on[@]}" --nodes=1 --nodelist="${nodes[0]}" "${start[@]}" --head --port=6379 --temp-dir="$scratch" &
steps+=($!)
for _ in {1..60}; do
    ray health-check --address "$RAY_ADDRESS" > /dev/null 2>&1 && break
    kill -0 "${steps[0]}"                # else Ray said why it did not start
    sleep 2
done
if ((${#nodes[@]} > 1)); then
    others=$(IFS=, && echo "${nodes[*]:1}")
    "${on[@]}" --nodes=$((${#nodes[@]} - 1)) --nodelist="$others" "${start[@]}" --address="$RAY_ADDRESS" &
    steps+=($!)
fi
python - "${#nodes[@]}" << 'END'         # gangs are sized by the nodes that are there
import sys, time, ray

ray.init(logging_level="ERROR", log_to_driver=False)
for second in range(300):
    alive = sum(node["Alive"] for node in ray.nodes())
    if alive == int(sys.argv[1]):
        sys.exit()
    time.sleep(1)
sys.exit(f"after 5 minutes {alive} of {sys.argv[1]} nodes have joined")
END

# The run goes on as a child, so that signals are heard while it lasts. Slurm sends USR1 three minutes before the
# time is up: the run ends in good order, and the requeued job goes on. scancel sends TERM: it ends for good.
requeue=false
captune run "$@" --resume &
run=$!
trap 'requeue=true; kill -TERM "$run"' USR1
trap 'kill -TERM "$run"' TERM
status=0
while kill -0 "$run" 2> /dev/null; do
    status=0
    wait "$run" || status=$?
done
if $requeue && ((status)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
