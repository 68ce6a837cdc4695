#!/bin/bash
#SBATCH --job-name=image-processing
#SBATCH --nodes=2
#SBATCH --ntasks=10
#SBATCH --cpus-per-task=1
#SBATCH --time=00:10:00

# One rank is the scheduler, one the program, eight are workers.
# The directory of the job script must be on a file system that all nodes share.
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"

# Activate the environment that holds recup here, e.g. `source .venv/bin/activate`.

recup run srun python image_processing.py --mode mpi --images 64 --output "out-$SLURM_JOB_ID"
