"""Who scores the units of a run: this process, or one for each of several devices."""
