"""Entry point of `python -m virtualmle`; the `virtualmle` console script calls the same `main`."""

from .cli.app import main

if __name__ == "__main__":
    main()
