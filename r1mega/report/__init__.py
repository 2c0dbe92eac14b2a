"""Curves, tables and transcripts of finished or running runs. Reads run directories and nothing else."""
