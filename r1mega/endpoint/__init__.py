"""A client of OpenAI-compatible servers, for evaluations and for rewards that a model gives."""
