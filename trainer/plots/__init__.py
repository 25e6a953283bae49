"""Plots as PNG files."""

import os

os.environ["MPLBACKEND"] = "agg"  # no plot is shown in a window, and matplotlib would refuse an unknown name here
