"""A run while it runs: where it is, what happened, what it waits for. Reads the files of a run directory, on any
machine that sees it, writes nothing there and imports no torch."""
