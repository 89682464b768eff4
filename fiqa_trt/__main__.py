"""`python -m fiqa_trt` is the `fiqa-trt` command."""

from fiqa_trt.cli import main

if __name__ == "__main__":
    main()
