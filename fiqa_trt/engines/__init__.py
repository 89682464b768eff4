"""Engines: the same ensemble on different hardware, behind one protocol."""
