"""`hashpose-bench`: scenes x presets x seeds, trained, evaluated and compared. The runs are data, in `data/*.yaml`."""
