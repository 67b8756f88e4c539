"""Captioned images: layouts on disk, decoding, the prepared cache, tokens and batches."""
