#!/usr/bin/env bash
# Submits the same jobs: run it in the repository's root. `r1mega jobs` then knows nothing of them.
set -euo pipefail
mkdir -p runs/distill/llama_3_1_8b/logs runs/distill/qwen2_5_14b/logs runs/distill/qwen2_5_math_7b/logs
job_llama_3_1_8b=$(sbatch --parsable --job-name=llama_3_1_8b --output=runs/distill/llama_3_1_8b/logs/llama_3_1_8b-%j.out --nodes=2 --ntasks-per-node=8 --cpus-per-task=1 --gpus-per-node=8 slurm/sft_stage.sh configs/distill/llama_3_1_8b.toml --cluster h800_14b --run-dir runs/distill/llama_3_1_8b)
job_qwen2_5_14b=$(sbatch --parsable --job-name=qwen2_5_14b --output=runs/distill/qwen2_5_14b/logs/qwen2_5_14b-%j.out --nodes=2 --ntasks-per-node=8 --cpus-per-task=1 --gpus-per-node=8 slurm/sft_stage.sh configs/distill/qwen2_5_14b.toml --cluster h800_14b --run-dir runs/distill/qwen2_5_14b)
job_qwen2_5_math_7b=$(sbatch --parsable --job-name=qwen2_5_math_7b --output=runs/distill/qwen2_5_math_7b/logs/qwen2_5_math_7b-%j.out --nodes=2 --ntasks-per-node=8 --cpus-per-task=1 --gpus-per-node=8 slurm/sft_stage.sh configs/distill/qwen2_5_math_7b.toml --cluster h800_14b --run-dir runs/distill/qwen2_5_math_7b)
