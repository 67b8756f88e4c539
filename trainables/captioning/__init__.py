"""The trainable `captioning`: images in, sentences out."""
