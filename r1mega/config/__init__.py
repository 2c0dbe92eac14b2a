"""Settings: `schema`, `training` and `cluster` say what exists, `load` reads TOML and overrides, `checks` holds the
laws between fields.

Torch-free, so that `r1mega check` answers at once on a login node.
"""
