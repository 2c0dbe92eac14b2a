"""A Hugging Face folder of weights by what its config.json, index and headers say: no tensor is read, no torch.

Every fault of the folder is found here, before any tensor's data is read: files, headers, index,
names, shapes, dtypes.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from r1mega.errors import WeightMappingError
from r1mega.families.registry import model_of
from r1mega.families.spec import SCORE_HEAD, Kind, ModelSpec
from r1mega.formats import fp8_blocks
from r1mega.formats.hf_files import read_config, read_files
from r1mega.formats.one_to_one import check_files
from r1mega.formats.safetensors import DTYPE_REMEDY, DTYPES, Entry

FLOATS = ("F32", "BF16", "F16")
"""What weights may be stored as, FP8 blocks aside."""
INVERSE_FREQUENCIES = re.compile(r"model\.(?:layers\.(\d+)\.self_attn\.)?rotary_emb\.inv_freq")


class HFHeaders:
    """What a folder says of its tensors, compared with the table of its model's family."""

    def __init__(self, path: Path, spec: ModelSpec | None = None) -> None:
        """Hold the folder against its own config.json, or against `spec`, which it then need not state.

        A model of scores may begin on a language model: a folder whose config.json states one is held against that,
        and its table must have all of the model's but the score head.

        Raises:
            ConfigError: config.json is missing, not understood, or quantised in another way than DeepSeek's.
            WeightMappingError: no safetensors, or files and an index that cannot be read.
        """
        lacking: list[str] = []
        if spec is not None and not (path / "config.json").is_file():
            self.quantised = False
        else:
            fields, self.quantised = read_config(path)
            if spec is None or spec.head == "score":
                stated = model_of(fields, path / "config.json")
                if spec is not None and stated.head == "lm":
                    lacking = _lacking(stated, spec)
                spec = stated if spec is None or stated.head == "lm" else spec
        self.path, self.spec = path, spec
        self.table = spec.tensors()
        self.entries, self.faults = read_files(path)
        """Every tensor of every file; and what is wrong with them."""
        self.faults += lacking
        self.places = {entry.name: (file, entry) for file, entry in self.entries}
        self.left_out = [name for name in self.places if _is_inverse_frequencies(spec, name)]
        """Inverse frequencies of rotary positions, which old folders keep with the weights; nobody reads them."""
        self._look()

    def _look(self) -> None:
        by_name = {name: entry for name, (_, entry) in self.places.items()}
        scales = {name for name in by_name if name.endswith(".weight" + fp8_blocks.SUFFIX)}
        weights = [e for _, e in self.entries if e.name not in scales and e.name not in self.left_out]
        try:
            check_files(self.table, [(e.name, e.shape) for e in weights])
        except WeightMappingError as e:
            self.faults.extend(str(e).split("\n  ")[1:])
        self.faults += [f for e in weights for f in self._dtype_faults(e, by_name)]
        for name in sorted(scales):
            weight = by_name.get(name.removesuffix(fp8_blocks.SUFFIX))
            if weight is None or weight.dtype != fp8_blocks.CODES:
                self.faults.append(f"{name}: scales of a tensor that is not there or not FP8")
        for row in self.table:
            dtypes = {by_name[n].dtype for n in row.hf if n in by_name}
            if len(dtypes) > 1:
                names = ", ".join(row.hf)
                self.faults.append(f"{names}: dtypes differ ({_names_of(dtypes)}), Megatron keeps them as one")

    def _dtype_faults(self, entry: Entry, by_name: Mapping[str, Entry]) -> list[str]:
        if entry.dtype in FLOATS:
            return []
        if entry.dtype != fp8_blocks.CODES or len(entry.shape) != 2:
            return [f"tensor {entry.name} has dtype {entry.dtype}, not read here; {DTYPE_REMEDY}"]
        if not self.quantised:
            return [
                f"{entry.name}: FP8, but config.json has no quantization_config; fetch config.json again, it belongs "
                "to other weights"
            ]
        scale = by_name.get(entry.name + fp8_blocks.SUFFIX)
        if scale is None:
            return [f"{entry.name + fp8_blocks.SUFFIX}: missing, {entry.name} is FP8"]
        shape = fp8_blocks.scale_shape(entry.shape)
        if scale.dtype not in fp8_blocks.READ_SCALES or scale.shape != shape:
            wanted = f"{_names_of(fp8_blocks.READ_SCALES)} {shape}"
            return [f"{scale.name}: {_names_of([scale.dtype])} {scale.shape}, expected {wanted}"]
        return []

    def refuse_faults(self) -> None:
        """Raises: WeightMappingError: everything that is wrong with index, names, shapes and dtypes."""
        if self.faults:
            summary = f"{self.path}: the folder and the model do not map one to one ({len(self.faults)} faults):"
            raise WeightMappingError("\n  ".join([summary, *self.faults]))

    def files(self) -> list[Path]:
        """What the weights lie in."""
        return sorted({file for file, _ in self.entries})


def _lacking(stated: ModelSpec, wanted: ModelSpec) -> list[str]:
    """Rows of a model of scores that the language model on which it begins has not, or in another shape."""
    found = {row.megatron: (row.hf, row.hf_shapes) for row in stated.tensors() if row.kind is not Kind.COPY}
    return [
        f"{row.hf[0]}: the model of scores needs {row.hf_shapes[0]}, the folder's config.json describes another"
        for row in wanted.tensors()
        if row.megatron != SCORE_HEAD and found.get(row.megatron) != (row.hf, row.hf_shapes)
    ]


def _is_inverse_frequencies(spec: ModelSpec, name: str) -> bool:
    """Whether a tensor of a folder is the inverse frequencies of one of its layers, or of all of them."""
    found = INVERSE_FREQUENCIES.fullmatch(name)
    layers = spec.num_layers + spec.num_mtp_layers
    return found is not None and int(found[1] or 0) < layers


def _names_of(dtypes: Collection[str]) -> str:
    return ", ".join(sorted(DTYPES[dtype][0] for dtype in dtypes))
