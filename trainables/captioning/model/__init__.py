"""The captioner: encoders, decoders, search for the best caption."""
