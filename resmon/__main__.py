"""`python -m resmon` is the command `resmon`."""

from resmon.cli import main

if __name__ == "__main__":
    main()
