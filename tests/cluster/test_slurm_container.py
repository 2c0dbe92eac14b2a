"""Trainer and servers in a container that has no Slurm in it: what rank 0 orders is started, restarted and stopped.

Apptainer is stood in for by a program that takes its command line and hides Slurm's commands.
"""

import json
import sys
from pathlib import Path

from emulated_slurm import PROGRAMS, Slurm, ended, wait_until

HIDDEN = (*PROGRAMS, "squeue", "sinfo", "sacct", "sstat", "sattach", "salloc", "sbcast", "python3")
APPTAINER = """#!/usr/bin/env bash
# apptainer exec OPTIONS IMAGE COMMAND...
printf '%s\\n' "$@" >"{folder}/words.$SLURMD_NODENAME"
shift
while [[ $1 == -* ]]; do
  case $1 in
    --bind | --pwd) shift 2 ;;
    *) shift ;;
  esac
done
[[ $1 == {image} ]] || exit 99
shift
export PATH={programs}
exec "$@"
"""
TRAINER = """
for name in {slurm}; do
  if type -P "$name"; then echo "there is $name" && exit 2; fi
done
servers=$(sed -n 's/.*cluster.rollout.attendants=\\([^ ]*\\).*/\\1/p' <<<"$*")
order() {{ # NUMBER COMMAND
  local what='"environment": {{"WORD": "word"}}, "log": "'$PWD/server'"'
  echo '{{"number": '"$1, $what"', "command": '"$2}}" >"$servers/new"
  mv "$servers/new" "$servers/order_0_0_0.json"
}}
state() {{ tr -d ' \\n' <"$servers/state_0_0_0.json" 2>/dev/null; }}
serve='["bash", "-c", "echo $$ $SLURMD_NODENAME $VLLM_A $WORD; exec sleep 6000"]'
until [[ -e $servers/node_0.json ]]; do sleep 0.1; done
order 1 "$serve"
until [[ $(wc -l 2>/dev/null <server) == 1 && $(state) == *'"number":1,"code":null'* ]]; do sleep 0.1; done
kill -KILL "$(cut -d ' ' -f 1 server)"
until [[ $(state) == *'"number":1,"code":137'* ]]; do sleep 0.1; done
order 2 "$serve"
until [[ $(wc -l <server) == 2 ]]; do sleep 0.1; done
second=$(tail -n 1 server | cut -d ' ' -f 1)
order 3 null
until [[ $(state) == *'"number":3'* ]]; do sleep 0.1; done
[[ ! -e /proc/$second || $(cut -d ' ' -f 3 "/proc/$second/stat") == Z ]] || exit 2
order 4 "$serve" # which is left running
until [[ $(wc -l <server) == 3 ]]; do sleep 0.1; done
echo "$NVTE_A ${{VLLM_A-unset}} $NCCL_A"
"""
"""Rank 0: starts a server, kills it, starts another, stops that, and leaves a third one."""
CLUSTER = """
[environment.container]
kind = "apptainer"
image = "{image}"
python = "{python}"

[environment.variables]
NCCL_A = "a b"

[environment.trainer]
NVTE_A = "$(t)"

[environment.rollout]
VLLM_A = "c;d"
"""


def test_a_server_is_started_restarted_and_stopped_from_within_a_container_without_slurm(
    slurm: Slurm, stub, tmp_path: Path
):
    folder = stub(tmp_path, TRAINER.format(slurm=" ".join(PROGRAMS)), config="configs/tiny/r1_zero/1_rl.toml")
    image, inside, outside = tmp_path / "r1mega.sif", tmp_path / "inside", tmp_path / "outside"
    image.touch()
    inside.mkdir()
    outside.mkdir()
    (inside / "python3").symlink_to(Path(sys.executable).resolve())
    for program in (one for folder in ("/usr/bin", "/bin") for one in Path(folder).iterdir()):
        if program.name not in HIDDEN and not (inside / program.name).is_symlink():
            (inside / program.name).symlink_to(program)
    apptainer = outside / "apptainer"
    apptainer.write_text(APPTAINER.format(folder=folder, image=image, programs=inside))
    apptainer.chmod(0o755)
    with (folder / "configs/cluster/c.toml").open("a") as cluster:
        cluster.write(CLUSTER.format(image=image, python=folder / ".venv/bin/python"))
    path = f"--export=ALL,PATH={outside}:/usr/bin:/bin:/usr/sbin"
    model = ("--set", f"model.config={folder}/configs/tiny/deepseek_v3.json")
    job = slurm.submit(path, "--nodes=2", "slurm/rl_stage.sh", "a.toml", "--cluster", "c", *model, cwd=folder)
    said, output = ended(slurm, job, "COMPLETED", folder)
    trainer, server = slurm.ask("scontrol", "show", "hostnames", said["NodeList"]).split()
    assert "\n$(t) unset a b\n" in output  # of the trainer alone; a value stays text
    started = [line.split(maxsplit=1)[1] for line in (folder / "server").read_text().splitlines()]
    assert started == [f"{server} c;d word"] * 3
    for node, script in ((trainer, "slurm/rank.sh"), (server, "slurm/server.sh")):
        words = (folder / f"words.{node}").read_text().splitlines()
        assert words[:3] == ["exec", "--no-home", "--writable-tmpfs"]
        assert words[words.index(str(image)) + 1] == script
    told = json.loads((folder / f"runs/slurm-{job}/servers/node_0.json").read_text())
    assert told["address"] == slurm.nodes[server]
    wait_until("nothing of the job is left", lambda: not slurm.processes(job), 60)
