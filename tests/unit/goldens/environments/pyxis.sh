environment_modules=()
environment_srun=(--container-image=/images/r1mega.sqsh --container-workdir=/home/me/r1mega --no-container-mount-home --container-mounts=/home/me/r1mega:/home/me/r1mega,/data:/data,/w:/work:ro)
environment_within=()
environment_variables=()
environment_trainer=()
environment_rollout=()
environment_venv=''
environment_conda=''
environment_image=/images/r1mega.sqsh
environment_python=/opt/r1mega/.venv-gpu-trainer/bin/python
environment_checks=on
