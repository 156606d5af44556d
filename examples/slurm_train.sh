#!/bin/bash
# From scans to priors on a SLURM cluster: one torchrun a machine, one process a GPU, machines found by the first one.
#   sbatch --nodes=2 examples/slurm_train.sh SCANS RUN
# SCANS and RUN lie on a file system that all machines see. Submit it again after a time limit or a lost machine: what is
# finished stays, and a training goes on from the last epoch that was saved.
#SBATCH --job-name=vqgen
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

SCANS=$1
RUN=$2
# The folder of the bundle's configurations; where pip installed the package: python -c "import monai_vqgen._bundle as b; print(*b.__path__)"
CONFIGS=${CONFIGS:-bundle/configs}
PROCESSES=${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}} # a machine
CORES=${SLURM_CPUS_PER_TASK:-$PROCESSES}
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
FIRST=${FIRST%%$'\n'*}
export OMP_NUM_THREADS=$((CORES > PROCESSES ? CORES / PROCESSES : 1))

# stage FILE OPTIONS...: one stage of the bundle on all machines; when one process dies, all end, and so does the job.
stage() {
    local name=$1
    shift
    srun --kill-on-bad-exit=1 --cpus-per-task="$CORES" torchrun --nnodes="$SLURM_NNODES" --nproc_per_node="$PROCESSES" \
        --rdzv_backend=c10d --rdzv_id="$SLURM_JOB_ID" --rdzv_endpoint="$FIRST:${PORT:-29500}" \
        -m monai.bundle run --config_file "['$CONFIGS/$name.json','$CONFIGS/multi_gpu_$name.json']" "$@"
}

# A stage is done when the file that it writes last is there. What a run that was ended has left is replaced, but for a
# training with a saved epoch, which goes on.
[ -f "$RUN/slices/datalist.json" ] ||
    stage extract_slices --dataset_dir "$SCANS" --output_dir "$RUN/slices" --overwrite true
[ -f "$RUN/autoencoder.done" ] ||
    stage train --dataset_dir "$RUN/slices" --output_dir "$RUN/model" --resume true --overwrite true
touch "$RUN/autoencoder.done"
[ -f "$RUN/codes/codes.json" ] ||
    stage extract_codes --dataset_dir "$RUN/slices" --model "$RUN/model/model.pt" --output_dir "$RUN/codes" --overwrite true
for level in 0 1; do
    [ -f "$RUN/prior_level$level.done" ] ||
        stage train_prior --level "$level" --dataset_dir "$RUN/codes" --output_dir "$RUN/model" --resume true --overwrite true
    touch "$RUN/prior_level$level.done"
done
