"""The networks and what they expect of an image."""
