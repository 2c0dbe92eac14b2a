#!/usr/bin/env bash
# Submits the same jobs: run it in the repository's root. `r1mega jobs` then knows nothing of them.
set -euo pipefail
mkdir -p runs/distill/llama_3_3_70b_instruct/logs runs/distill/qwen2_5_32b/logs runs/r1_zero/qwen_32b_zero/logs
job_llama_3_3_70b_instruct=$(sbatch --parsable --job-name=llama_3_3_70b_instruct --output=runs/distill/llama_3_3_70b_instruct/logs/llama_3_3_70b_instruct-%j.out --nodes=8 --ntasks-per-node=8 --cpus-per-task=1 --gpus-per-node=8 slurm/sft_stage.sh configs/distill/llama_3_3_70b_instruct.toml --cluster h800_70b --run-dir runs/distill/llama_3_3_70b_instruct)
job_qwen2_5_32b=$(sbatch --parsable --job-name=qwen2_5_32b --output=runs/distill/qwen2_5_32b/logs/qwen2_5_32b-%j.out --nodes=8 --ntasks-per-node=8 --cpus-per-task=1 --gpus-per-node=8 slurm/sft_stage.sh configs/distill/qwen2_5_32b.toml --cluster h800_70b --run-dir runs/distill/qwen2_5_32b)
job_qwen_32b_zero=$(sbatch --parsable --job-name=qwen_32b_zero --output=runs/r1_zero/qwen_32b_zero/logs/qwen_32b_zero-%j.out --nodes=10 --ntasks-per-node=8 --cpus-per-task=1 --gpus-per-node=8 slurm/rl_stage.sh configs/r1_zero/qwen_32b_zero.toml --cluster h800_70b --run-dir runs/r1_zero/qwen_32b_zero)
