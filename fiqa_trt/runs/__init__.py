"""The run: from inputs to one complete output, with resume, retry and accounting."""
