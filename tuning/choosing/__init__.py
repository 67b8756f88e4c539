"""Among what was found: the front, two models side by side, what ships."""
