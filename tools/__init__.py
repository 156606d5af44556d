"""Tools of the repository, outside the wheel: release, comparison of designs, tables of results, packing."""
