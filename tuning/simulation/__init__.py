"""A search in virtual time, over learning curves that are known."""
