"""The scores file: its columns, its formats, and what is counted in it."""
