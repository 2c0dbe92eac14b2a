# shellcheck shell=bash
# Enters what the cluster file's [environment] says (r1mega/config/environment.py). Sourced; `say` and SRUN are the
# caller's. Afterwards:
#   PYTHON        the interpreter of this script itself, for `r1mega check`
#   SRUN          has the options that start steps in pyxis' container
#   WITHIN        what a step's command is put behind: Apptainer's command line, or nothing
#   TRAINER, SERVER  words of a step's command: `env` with the variables, and the interpreter

environment_modules=() environment_srun=() environment_within=() environment_variables=()
environment_trainer=() environment_rollout=()
# shellcheck disable=SC2034 # for slurm/nodes.sh
environment_venv='' environment_conda='' environment_image='' environment_python='' environment_checks=on
WITHIN=() TRAINER=() SERVER=()

# Asks, here and on no other node, with what the job was submitted in: the checkout's own environment, or the active one.
find_python() {
  local prefix
  for prefix in .venv "${VIRTUAL_ENV-}" "${CONDA_PREFIX-}"; do
    [[ -z $prefix || ! -x $prefix/bin/python ]] || break
    prefix=
  done
  [[ -n $prefix ]] || return 1
  PYTHON=$prefix/bin/python
}

enter_environment() { # CONFIG SETTINGS...: returns 2 where something that it names is not there, which is said
  local lines name pair gone=()
  for name in R1MEGA_IMAGE R1MEGA_MOUNTS R1MEGA_PYTHON; do
    [[ -z ${!name-} ]] || gone+=("$name")
  done
  if ((${#gone[@]})); then
    say "${gone[*]}: set where the job was submitted, and read by nobody. Containers and interpreters are the cluster" \
      "file's: [environment.container], or --set cluster.environment.container.image=FILE"
    return 2
  fi
  lines=$("$PYTHON" -m r1mega.cli check "$@" --print environment) || return $?
  eval "$lines" # assignments, in which every word is quoted
  if [[ -n $environment_image && ! -e $environment_image ]]; then
    say "environment.container.image: there is no $environment_image on $(hostname); containers/README.md says how it is made"
    return 2
  fi
  ((${#environment_modules[@]} == 0)) || load_modules "${environment_modules[@]}" || return 2
  [[ -z $environment_venv ]] || activate_venv || return 2
  [[ -z $environment_conda ]] || activate_conda || return 2
  for pair in "${environment_variables[@]}"; do
    name=${pair%%=*}
    if [[ -n ${!name-} && ${!name} != "${pair#*=}" ]]; then
      say "$name is ${!name@Q} where the job was submitted, and ${pair#*=} by the cluster file, which holds"
    fi
    export "${pair?}"
  done
  SRUN+=("${environment_srun[@]}")
  # shellcheck disable=SC2034 # for whoever has sourced this
  WITHIN=("${environment_within[@]}")
  # shellcheck disable=SC2034
  TRAINER=(env "${environment_trainer[@]}" "${environment_python:-$PYTHON}")
  # shellcheck disable=SC2034
  SERVER=(env "${environment_rollout[@]}" "${environment_python:-$PYTHON}")
}

load_modules() { # NAME...
  local file name before
  if ! declare -F module >/dev/null; then # a batch script is no login shell
    for file in "${LMOD_PKG:+$LMOD_PKG/init/bash}" "${MODULESHOME:+$MODULESHOME/init/bash}" \
      /etc/profile.d/{lmod,z00_lmod,modules}.sh /usr/share/{lmod/lmod,modules}/init/bash; do
      if [[ -n $file && -r $file ]]; then
        unguarded source "$file" || true
        break
      fi
    done
  fi
  if ! declare -F module >/dev/null; then
    say "environment.modules: there is no \`module\` on $(hostname) (neither Lmod nor Environment Modules was found)"
    return 2
  fi
  for name; do
    before=${LOADEDMODULES-}
    # Environment Modules before 4 ends with 0 whatever happens: then nothing has been added.
    if ! unguarded module load "$name" || [[ $before == "${LOADEDMODULES-}" && :$before != *:"$name"[:/]* && :$before: != *:"$name":* ]]; then
      say "environment.modules: \`module load $name\` did not load it, as it says above; \`module avail\` lists those there are"
      return 2
    fi
  done
}

activate_venv() {
  if [[ ! -x $environment_venv/bin/python ]]; then
    say "environment.venv: $environment_venv has no bin/python on $(hostname); \`make env\` shows how one is made"
    return 2
  fi
  export VIRTUAL_ENV=$environment_venv PATH=$environment_venv/bin:$PATH
  unset PYTHONHOME
  environment_python=$environment_venv/bin/python
}

activate_conda() {
  local conda=${CONDA_EXE:-$(type -P conda || true)} found
  if [[ -z $conda ]]; then
    say "environment.conda: there is no conda on $(hostname): have it on PATH where you submit, or name its module" \
      "in environment.modules"
    return 2
  fi
  found=$("$conda" shell.bash hook 2>&1) || { say "environment.conda: \`$conda shell.bash hook\`: $found" && return 2; }
  unguarded eval "$found"
  if ! unguarded conda activate "$environment_conda" || [[ ! -x ${CONDA_PREFIX-}/bin/python ]]; then
    say "environment.conda: $environment_conda could not be activated on $(hostname), or has no python; \`conda env list\`" \
      "names those there are"
    return 2
  fi
  environment_python=$CONDA_PREFIX/bin/python
}

unguarded() { # COMMAND...: other people's shell, which need not bear `set -eu`
  local code=0
  set +u
  "$@" || code=$?
  set -u
  return "$code"
}
