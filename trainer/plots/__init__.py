"""The plots of a run and of a sweep: plain data in, PNG files out."""
