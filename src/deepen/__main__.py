"""`python -m deepen` is the program `deepen`."""

from deepen.cli import main

if __name__ == "__main__":
    main()
