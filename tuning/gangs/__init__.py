"""Warm gangs of workers, seen from the driver: their plan, their owner, their mailbox."""
