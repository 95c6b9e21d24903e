"""Models in the files of other engines, which must say exactly what the model says."""
