#!/bin/bash
# A run for every combination of settings, each a job of its own in an array.
#
#     sbatch jobs/slurm/sweep.sh --config c.yaml --set trainer_config.max_rounds=200
#
# What follows the script's name goes to each federation.launch. What stands before it goes to sbatch, and wins over the
# lines below (sbatch --array=4-7 jobs/slurm/sweep.sh ...). docs/clusters.md says more about each of them.

#SBATCH --job-name=sweep
# From 0 to the number of combinations less one; at most 4 of them run at the same time.
#SBATCH --array=0-5%4
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
# A log for each, in the folder where sbatch is called. A job that starts again goes on in the same one.
#SBATCH --output=%x-%A_%a.log
#SBATCH --open-mode=append
# Slurm starts the job again after a preemption, or when a node fails.
#SBATCH --requeue
# Two minutes before the end (or with PreemptParameters=send_user_signal before a preemption), Slurm tells this shell.
#SBATCH --signal=B:USR1@120
# What your site may want as well; take one # away.
##SBATCH --account=...
##SBATCH --partition=...
##SBATCH --mem-per-cpu=2G

set -euo pipefail

# What is swept. The seed changes fastest.
seeds=(0 1 2)
rates=(0.05 0.1)
seed=${seeds[SLURM_ARRAY_TASK_ID % ${#seeds[@]}]}
rate=${rates[SLURM_ARRAY_TASK_ID / ${#seeds[@]}]}

# The environment: what you type before `python -m federation.launch` works. A job has the environment of the shell that
# calls sbatch, unless the site says otherwise.
# module load python openmpi
# source "$HOME/federation/.venv/bin/activate"

# Cores for each rank. `threads` of the configuration is 1 unless it says otherwise; `threads: auto` follows this.
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
# mpirun gives its ranks a terminal even here. This one is for plain lines in the log instead of a bar.
export TERM=dumb

# The runs' folders, in place of the configuration's output_dir; on a file system that all nodes see: a job that starts
# again may be given another one. On most clusters that is "$SCRATCH/...". To go on with an earlier sweep:
# SWEEP=runs/sweep-4711 sbatch jobs/slurm/sweep.sh ...
SWEEP=${SWEEP:-$SLURM_SUBMIT_DIR/runs/$SLURM_JOB_NAME-$SLURM_ARRAY_JOB_ID}
OUTPUT=$SWEEP/seed-$seed-rate-$rate

# The launcher: mpirun of the MPI library that mpi4py uses. Or srun, where `srun --mpi=list` shows the PMIx that this
# library was built with; another one starts worlds of one rank each, which the program refuses. Never one in the other.
launcher=(mpirun --map-by "slot:PE=$OMP_NUM_THREADS" --bind-to core)
# launcher=(srun --mpi=pmix --cpus-per-task="$OMP_NUM_THREADS" --cpu-bind=cores)

"${launcher[@]}" python -m federation.launch "$@" --output_dir "$OUTPUT" --resume auto \
    --seed "$seed" --set "learner_config.client_lr=$rate" &

# The same lines end every script here. A signal goes on to the launcher, and interrupts `wait`, which is called again.
# Status 75 says that the run has stopped with a checkpoint, to be resumed: the same job, later.
run=$!
trap 'signalled=yes; kill -USR1 "$run" || true' USR1 TERM
signalled=yes
while [ "$signalled" = yes ]; do
    signalled=no
    status=0
    wait "$run" || status=$?
done
if [ "$status" -eq 75 ]; then
    # Of an array, this task alone: the last one has the number of the whole array.
    job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
    scontrol requeue "$job" || echo "to go on: submit again with SWEEP=$SWEEP" >&2
fi
exit "$status"
