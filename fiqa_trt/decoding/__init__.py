"""The bytes of images to pixels."""
