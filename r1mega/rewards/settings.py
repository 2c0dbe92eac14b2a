"""Settings of the rule rewards. Imports pydantic alone."""

from pydantic import Field

from r1mega.config.section import Section


class Rewards(Section):
    """Rule rewards and their weights; the report's R1-Zero adds accuracy and format with equal weight."""

    accuracy: float = Field(default=1.0, ge=0)
    format: float = Field(default=1.0, ge=0)
