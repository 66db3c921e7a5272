"""Export of refined poses in the frame of the input dataset."""
