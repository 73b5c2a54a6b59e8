"""Many runs: a sweep as a list of runs, and what starts them."""
