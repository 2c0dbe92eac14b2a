"""Settings of no stage in particular: `section` says what a table is, `load` reads TOML and overrides, `cluster` says
where a stage runs, `training` and `model` hold sections that several recipes have.

Torch-free, so that `r1mega check` answers at once on a login node.
"""
