"""What one trial does: the protocol, the worker side of a gang, and the trainables that ship."""
