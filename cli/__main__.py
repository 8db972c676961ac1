"""`python -m fusedge.cli` is the same as `fusedge`."""

from fusedge.cli.main import main

main()
