"""What lies in a run's folder: names, readers, the pose history, and loading a trained run."""
