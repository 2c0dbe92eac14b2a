"""Programs as answers: where they stand in a response, what they are tested with, and whether they pass."""
