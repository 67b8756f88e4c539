"""The parts of chaos.py and recovery.py: an experiment on a cluster of its own, and what is done to it."""
