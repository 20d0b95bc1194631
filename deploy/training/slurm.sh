#!/bin/bash
# popi train on two nodes of eight GPUs: sbatch deploy/training/slurm.sh configs/elix.toml
# The run directory (root = "runs") must be on a file system that all nodes share.
#SBATCH --job-name=popi
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# --resume starts the run if it has not begun, and continues it after a requeue or a lost node.
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d \
  --rdzv-endpoint "$host:29500" -m popi train "$@" --resume
