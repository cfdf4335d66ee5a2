"""What pkpo costs, as ratios to a floor or a peer measured in the same run. `python -m benchmarks --help` tells how."""
