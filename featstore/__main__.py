"""``python -m featstore``."""

from featstore.cli import main

if __name__ == "__main__":
    main()
