"""Long runs over many made-up inputs: python -m tests.sweeps mutants --count 20000."""
