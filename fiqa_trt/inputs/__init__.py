"""What the user gives: folders, lists and containers, and where in them an image is."""
