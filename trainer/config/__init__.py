"""From typed words to one frozen Config. Torch-free: a typo is answered at once."""
