"""Plots as PNG files."""

import contextlib
import os
import sys

if "matplotlib" not in sys.modules and "MPLBACKEND" in os.environ:
    backend = os.environ.pop("MPLBACKEND")  # no plot is shown in a window, and matplotlib would refuse an unknown name
    import matplotlib

    os.environ["MPLBACKEND"] = backend  # it is for the plots of others, as in a notebook
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = backend
