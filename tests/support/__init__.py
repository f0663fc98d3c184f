"""What tests share: an independent dense truth, and how to compare with it."""
