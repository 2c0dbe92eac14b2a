"""A loss for the tests on a GPU."""


def nll(logp, fields, doc):
    """The next-token loss in nats."""
    return -(fields["weight"] * logp).sum(), {}
