"""Whether refinement helped, judged without ground truth by pixels that no field has seen."""
