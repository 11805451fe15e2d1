#!/bin/bash
# Federated averaging over MPI on GPUs: a rank for each GPU. Rank 0 serves and trains as well, so that no GPU is idle.
#
#     sbatch jobs/slurm/fedavg_gpu.sh --config c.yaml --set trainer_config.max_rounds=200
#
# What follows the script's name goes to federation.launch. What stands before it goes to sbatch, and wins over the
# lines below (sbatch --nodes=8 jobs/slurm/fedavg_gpu.sh ...). docs/clusters.md says more about each of them.

#SBATCH --job-name=fedavg_gpu
#SBATCH --nodes=2
# As many tasks as GPUs on a node. A rank takes the GPU of its number among the ranks of its node; do not set
# CUDA_VISIBLE_DEVICES, Slurm does. More ranks than GPUs share them, which suits small models.
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
# A node's cores shared among its GPUs, for whatever loads and transforms the data.
#SBATCH --cpus-per-task=8
#SBATCH --time=02:00:00
# The log, in the folder where sbatch is called. A job that starts again goes on in the same one.
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# Slurm starts the job again after a preemption, or when a node fails.
#SBATCH --requeue
# Two minutes before the end (or with PreemptParameters=send_user_signal before a preemption), Slurm tells this shell.
#SBATCH --signal=B:USR1@120
# What your site may want as well; take one # away.
##SBATCH --account=...
##SBATCH --partition=...

set -euo pipefail

# The environment: what you type before `python -m federation.launch` works. A job has the environment of the shell that
# calls sbatch, unless the site says otherwise.
# module load python openmpi cuda
# source "$HOME/federation/.venv/bin/activate"

# Cores for each rank. `threads` of the configuration is 1 unless it says otherwise; `threads: auto` follows this.
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
# mpirun gives its ranks a terminal even here. This one is for plain lines in the log instead of a bar.
export TERM=dumb

# The run's folder, in place of the configuration's output_dir, so that each job has its own; on a file system that all
# nodes see: a job that starts again may be given others. On most clusters that is "$SCRATCH/...". To go on with the run of
# an earlier job: OUTPUT=runs/fedavg_gpu-4711 sbatch ...
OUTPUT=${OUTPUT:-$SLURM_SUBMIT_DIR/runs/$SLURM_JOB_NAME-$SLURM_JOB_ID}

# cuda ends the run with a message where a rank finds no GPU; auto would train on the CPU then.
DEVICE=${DEVICE:-cuda}

# The launcher: mpirun of the MPI library that mpi4py uses. Or srun, where `srun --mpi=list` shows the PMIx that this
# library was built with; another one starts worlds of one rank each, which the program refuses. Never one in the other.
# ULFM=yes sbatch ... lets the run outlive killed ranks (Open MPI 5; it moves messages without UCX then).
launcher=(mpirun ${ULFM:+--with-ft ulfm} --map-by "slot:PE=$OMP_NUM_THREADS" --bind-to core)
# launcher=(srun --mpi=pmix --cpus-per-task="$OMP_NUM_THREADS" --cpu-bind=cores)

"${launcher[@]}" python -m federation.launch "$@" --output_dir "$OUTPUT" --resume auto \
    --set "learner_config.device=$DEVICE" trainer_config.server_hosts_clients=true &

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
    scontrol requeue "$job" || echo "to go on: submit again with OUTPUT=$OUTPUT" >&2
fi
exit "$status"
