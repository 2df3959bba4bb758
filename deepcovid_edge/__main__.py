"""`python -m deepcovid_edge` is `deepcovid-edge`."""

from deepcovid_edge.cli.main import main

if __name__ == "__main__":
    main()
