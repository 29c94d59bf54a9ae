"""The command line, and what it leaves for a person: a run's folder, its report, tables."""
