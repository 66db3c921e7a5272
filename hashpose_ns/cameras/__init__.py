"""Camera poses: perturbation, refinement, alignment and errors."""
