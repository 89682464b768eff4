#!/usr/bin/env python3
"""Run `fiqa-trt` from a checkout: `python cli.py score …`."""

from fiqa_trt.cli import main

if __name__ == "__main__":
    main()
