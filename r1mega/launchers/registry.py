"""The table of launchers: a row each, with the module whose `make` makes one.

A module is imported when its launcher is asked for, since what it imports may not be installed here.
"""

import importlib
from collections.abc import Mapping
from typing import cast

from r1mega.config.load import nearest
from r1mega.errors import ConfigError
from r1mega.launchers.job import Launcher, LaunchOptions

LAUNCHERS: Mapping[str, str] = {
    "local": "r1mega.launchers.local",
    "slurm": "r1mega.launchers.slurm",
    "nemo_run": "r1mega.launchers.nemo_run",
}
"""Name -> module with `make(options: LaunchOptions) -> Launcher`."""


def launcher(name: str, options: LaunchOptions) -> Launcher:
    """The launcher of that name.

    Raises:
        ConfigError: there is none, or what it works with is not here.
    """
    if name not in LAUNCHERS:
        known = ", ".join(LAUNCHERS)
        raise ConfigError(f"--launcher {name}: no such launcher; choose one of {known}{nearest(name, LAUNCHERS)}")
    module = importlib.import_module(LAUNCHERS[name])
    return cast(Launcher, module.make(options))
