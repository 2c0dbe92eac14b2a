"""`python family_reference.py FOLDER NAME...`: each model by transformers, in a process without the trainer's shims.

The models are FOLDER/NAME (`family_models.write`). Writes FOLDER/NAME.reference.safetensors: log-softmax
[tokens - 1, vocabulary] of every document.
"""

import sys
from pathlib import Path

import torch
from family_models import documents
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from r1mega.families.registry import read_model


def main(folder: Path, names: list[str]) -> None:
    for name in names:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder / name, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        mtp = f"model.layers.{read_model(folder / name).num_layers}."  # transformers has no MTP layers
        assert not found["missing_keys"], found
        assert all(n.startswith(mtp) for n in found["unexpected_keys"]), found
        model.eval()
        with torch.no_grad():
            logits = [model(torch.tensor(d.token_ids.tolist())[None]).logits[0, :-1] for d in documents()]
        spread = torch.cat(logits).std()
        assert 0.5 < spread < 10, f"{name}: logits of standard deviation {spread}"
        logps = {str(i): x.float().log_softmax(-1) for i, x in enumerate(logits)}
        save_file(logps, folder / f"{name}.reference.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
