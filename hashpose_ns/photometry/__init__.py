"""Pixels of images, seen from poses, rendered and scored; and what is built on that alone: test-time optimisation,
evaluation, recovery of lost cameras, uncertainties."""
