"""The hand-written library: what torch.nn, its losses and torch.optim do, written in tensor operations and in NumPy.

formulas.py has the forward formula of every operation, by_hand.py its backward, with_numpy.py both in NumPy. nn.py has
the layers, which hold the parameters and call one of the three; optim.py has the optimizers. Nothing here calls a
layer, a loss or an optimizer of torch: only the containers Module, Parameter and Sequential come from torch.nn, and
only Function from torch.autograd.
"""
