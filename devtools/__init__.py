"""What the tests of the package and the benchmarks share; neither imports the other."""
