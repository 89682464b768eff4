"""Files that hold many images."""
