"""Which images stay, and handing them over."""
