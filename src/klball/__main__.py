"""`python -m klball`."""

from klball.cli import main

if __name__ == "__main__":
    main()
