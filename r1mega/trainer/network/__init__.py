"""The model and its layers: built on a rank, given first weights, called by the names of the family's table."""
