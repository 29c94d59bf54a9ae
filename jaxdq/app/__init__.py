"""The command line and its results: a run's folder, its report, tables."""
