"""Many runs: sweeps, searches, and the table of what they left."""
