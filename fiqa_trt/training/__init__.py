"""How the shipped checkpoint is made: degradations, labels, losses and the training loop. Needs `[train]`."""
