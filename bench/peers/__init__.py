"""Other libraries' coders, plain and patched, side by side."""
