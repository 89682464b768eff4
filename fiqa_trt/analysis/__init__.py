"""What scores say: the report, the explanation of one score, and how far they can be trusted."""
