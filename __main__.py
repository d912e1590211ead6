"""`python -m virtualmle` and the `virtualmle` console script."""

from .cli.app import main

if __name__ == "__main__":
    main()
