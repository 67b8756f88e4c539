"""Where an experiment runs: how a Ray cluster is joined, or one started on this machine."""
