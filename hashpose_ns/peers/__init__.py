"""Other methods that refine poses, in this package's training loop and under its evaluation."""
