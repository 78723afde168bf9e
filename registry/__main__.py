"""`python -m registry` is `ckreg`."""

from .cli import main

if __name__ == "__main__":
    main()
