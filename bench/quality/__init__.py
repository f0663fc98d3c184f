"""Coders of this package and of other libraries, trained on the same rows for the same budget, and measured alike."""
