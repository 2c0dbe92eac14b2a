environment_modules=(cuda/13.0 gcc)
environment_srun=()
environment_within=()
environment_variables=(NCCL_SOCKET_IFNAME==ib0)
environment_trainer=(NCCL_SOCKET_IFNAME==ib0)
environment_rollout=(NCCL_SOCKET_IFNAME==ib0)
environment_venv=/envs/r1mega
environment_conda=''
environment_image=''
environment_python=''
environment_checks=on
