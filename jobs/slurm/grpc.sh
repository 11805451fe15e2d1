#!/bin/bash
# Federated averaging over gRPC inside one job: the server on the first node, and clients on all of them. For a trial of
# what will run across institutions, with the same program, certificates and settings; within one cluster, MPI is faster.
#
#     sbatch jobs/slurm/grpc.sh --config c.yaml --set trainer_config.max_rounds=200
#
# What follows the script's name goes to the server and to every client. What stands before it goes to sbatch, and wins
# over the lines below. docs/network.md says more.

#SBATCH --job-name=grpc
#SBATCH --nodes=2
# Each task is a client, of the share of the data that has its number; one more process on the first node is the server.
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=1
#SBATCH --time=02:00:00
# The log, in the folder where sbatch is called. A job that starts again goes on in the same one.
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# Slurm starts the job again after a preemption, or when a node fails.
#SBATCH --requeue
# Two minutes before the end, Slurm tells this shell.
#SBATCH --signal=B:USR1@120

set -euo pipefail

# The environment: what you type before `python -m federation.launch` works.
# module load python
# source "$HOME/federation/.venv/bin/activate"

export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

# The run's folder, in place of the configuration's output_dir; on a file system that all nodes see.
OUTPUT=${OUTPUT:-$SLURM_SUBMIT_DIR/runs/$SLURM_JOB_NAME-$SLURM_JOB_ID}

# Where the server listens. The name must be the one that the other nodes reach it by (some sites want "$server-ib").
server=$(hostname)
PORT=${PORT:-$((20000 + SLURM_JOB_ID % 20000))}

# Certificates of this job alone, made anew at each start: mutual TLS. Elsewhere, give each side its own files.
certs=$OUTPUT.certs
rm -rf "$certs"
python -m federation.certs make --server "$server" --clients "$SLURM_NTASKS" -o "$certs"

python -m federation.launch "$@" --mode server --output_dir "$OUTPUT" --resume auto \
    --set transport.address="$server:$PORT" num_clients="$SLURM_NTASKS" transport.tls.ca="$certs/ca.pem" \
    transport.tls.cert="$certs/server.pem" transport.tls.key="$certs/server.key" &
run=$!

# One client a task. They wait for the server, come back when a connection breaks, and end with the run. Each is a program
# of its own and no rank of an MPI world, which the variables of its step would make it believe.
export server PORT certs
srun --mpi=none bash -c 'exec env -u SLURM_STEP_ID -u SLURM_STEPID python -m federation.launch "$@" --mode client --quiet \
    --set transport.address="$server:$PORT" num_clients="$SLURM_NTASKS" client_id="$SLURM_PROCID" \
    transport.tls.ca="$certs/ca.pem" transport.tls.cert="$certs/client_$SLURM_PROCID.pem" \
    transport.tls.key="$certs/client_$SLURM_PROCID.key"' client "$@" &
clients=$!

# A signal goes on to the server, which writes a checkpoint and ends with 75; the clients have nothing to save.
trap 'signalled=yes; kill -USR1 "$run" || true' USR1 TERM
signalled=yes
while [ "$signalled" = yes ]; do
    signalled=no
    status=0
    wait "$run" || status=$?
done
if [ "$status" -ne 0 ]; then
    kill "$clients" || true
fi
wait "$clients" || true
if [ "$status" -eq 75 ]; then
    job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
    scontrol requeue "$job" || echo "to go on: submit again with OUTPUT=$OUTPUT" >&2
fi
exit "$status"
