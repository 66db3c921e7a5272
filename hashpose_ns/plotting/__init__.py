"""Pictures of cameras and curves: what all drawings share, and figures of a run."""
