#!/usr/bin/env bash
# Submits the same jobs: run it in the repository's root. `r1mega jobs` then knows nothing of them.
set -euo pipefail
mkdir -p runs/distill/qwen2_5_math_1_5b/logs
job_qwen2_5_math_1_5b=$(sbatch --parsable --job-name=qwen2_5_math_1_5b --output=runs/distill/qwen2_5_math_1_5b/logs/qwen2_5_math_1_5b-%j.out --nodes=1 --ntasks-per-node=8 --cpus-per-task=1 --gpus-per-node=8 slurm/sft_stage.sh configs/distill/qwen2_5_math_1_5b.toml --cluster h800_1b5 --run-dir runs/distill/qwen2_5_math_1_5b)
