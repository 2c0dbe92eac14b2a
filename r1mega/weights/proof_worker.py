"""The worker's side of the proof: what it holds, box by box and as numbers, over vLLM's route for checksums.

/collective_rpc reaches every worker of a server, but answers for the first of its data-parallel engines alone;
/weight_checker answers for all. What that computes by itself proves little here: SHA-256 of the engine's own
parameters, which on a CPU are empty beside the kernels' copies, under names and in parts that the trainer does not
have. So `r1mega_prove` comes first, by the former route, and takes the place of each worker's next checksums.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor

from r1mega.weights import read_back
from r1mega.weights.digest import digest
from r1mega.weights.held import Boxes, HeldBox


class Loading:
    """Numbers of what was loaded into layers whose kernels do not give it back, taken before a kernel changes it."""

    def __init__(self, model: Any) -> None:
        """Watch the next load of the model."""
        self._seen, self._kept = dict[str, list[tuple[HeldBox, Tensor]]](), dict[str, list[int]]()
        self._boxes, self._layers, self._watched = Boxes(model, values=True), dict[str, Any](), list[Any]()
        for name, layer in model.named_modules():
            if hasattr(getattr(layer, "quant_method", None), "create_weights") and not read_back.gives_back(layer):
                self._layers[name] = layer
                self._watch(name, layer.quant_method)

    def _watch(self, name: str, method: Any) -> None:
        make_kernel = method.process_weights_after_loading

        def process_weights_after_loading(layer: Any) -> None:
            found = [box for box in self._boxes.of(name, layer, loading=True) if box.values is not None]
            self._seen[name] = [
                (b._replace(values=None), digest(b.values, b.start)) for b in found if b.values is not None
            ]
            make_kernel(layer)

        method.process_weights_after_loading = process_weights_after_loading
        self._watched.append(method)

    def numbers(self, *, kept: bool) -> dict[tuple[str, tuple[int, ...], str], Tensor]:
        """By name, start and place of a box.

        Args:
            kept: those alone whose layers are, in the kernel's own layout, as they were when this was asked without.
        """
        now = {name: _of_layer(layer) for name, layer in self._layers.items()}
        if not kept:
            self._kept = now
        unchanged = [boxes for name, boxes in self._seen.items() if now[name] == self._kept.get(name)]
        return {(box.name, box.start, box.place): number for boxes in unchanged for box, number in boxes}

    def end(self) -> None:
        for method in self._watched:
            del method.process_weights_after_loading
        self._watched.clear()


def _of_layer(layer: Any) -> list[int]:
    """A number of each of a layer's parameters, whatever is in it."""
    tensors = [parameter.detach() for parameter in layer.parameters(recurse=False)]
    return [int(digest(tensor.reshape(-1, tensor.shape[-1] if tensor.ndim else 1))) for tensor in tensors]


class _Number(NamedTuple):
    box: HeldBox
    number: Tensor | None
    how: str


class ProofWorker:
    """Mixed into vLLM's worker. Its methods answer /collective_rpc."""

    model_runner: Any
    _r1mega_loading: Loading | None = None

    def r1mega_prove(self, action: str) -> str:
        """Let this worker's next answer to /weight_checker be what it has, {place: JSON}; then vLLM's own again.

        Args:
            action: "plan": which boxes it has, before a push, which is watched from then on; "held": their numbers
                after it; "again": their numbers later, when no push has come in between.
        """
        if action not in ("plan", "held", "again"):
            raise ValueError(f"no proof named {action!r}; there are plan, held and again")

        def compute_weight_checksums() -> dict[str, str]:
            del self.compute_weight_checksums  # type: ignore[attr-defined]
            prefix: str = self._weight_checksum_prefix()  # type: ignore[attr-defined]
            return {f"{prefix}{n.box.place}|{n.box.name}": _line(n) for n in self._r1mega_numbers(action)}

        self.compute_weight_checksums = compute_weight_checksums
        return action

    def _r1mega_numbers(self, action: str) -> Iterator[_Number]:
        models = {"": self.model_runner.get_model()}
        draft = getattr(self.model_runner, "get_draft_model", lambda: None)()
        if draft is not None:
            models["the draft model's "] = draft
        if action == "plan":
            if self._r1mega_loading is not None:
                self._r1mega_loading.end()
            self._r1mega_loading = Loading(models[""])
        loading = self._r1mega_loading
        loaded = loading.numbers(kept=action == "again") if loading is not None and action != "plan" else {}
        for prefix, model in models.items():
            for box in Boxes(model, values=action != "plan"):
                named = box._replace(place=prefix + box.place)
                if box.values is not None:
                    yield _Number(named, digest(box.values, box.start), "read back")
                else:
                    yield _Number(named, loaded.get((box.name, box.start, box.place)), "loaded")
        if action == "held" and self._r1mega_loading is not None:
            self._r1mega_loading.end()


def _line(found: _Number) -> str:
    """A number as JSON: [name, start, shape, dtype, number or null, how]."""
    box, number = found.box, None if found.number is None else int(found.number)
    return json.dumps([box.name, box.start, box.shape, str(box.dtype).removeprefix("torch."), number, found.how])
