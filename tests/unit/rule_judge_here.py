"""tools/rule_judge.py as a module, and its judge without sockets."""

import importlib.util
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any


def _loaded() -> Any:
    spec = importlib.util.spec_from_file_location("rule_judge", Path(__file__).parents[2] / "tools/rule_judge.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rule_judge"] = module
    spec.loader.exec_module(module)
    return module


rule_judge = _loaded()


class InPlace:
    """An asker of a rule judge in this process."""

    def __init__(self, judge: Any) -> None:
        self._judge = judge

    def ask(self, messages: Any, *, seed: int, temperature: float, max_tokens: int) -> Future[str]:
        said: Future[str] = Future()
        said.set_result(self._judge.answer({"messages": list(messages), "seed": seed}))
        return said
