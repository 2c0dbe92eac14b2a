"""What every process needs of the machine it runs on: processes, environment, logs, shims."""
