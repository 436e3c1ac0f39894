"""`python -m edgebuild` and the console script."""

from edgebuild.cli import main

if __name__ == "__main__":
    main()
