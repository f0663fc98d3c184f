"""`sae-kernels demo`: the main job on a small language model and a text that every machine has."""
