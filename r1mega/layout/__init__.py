"""Who holds which slice of which tensor on which rank: arithmetic on a family's table, no torch, no engine."""
