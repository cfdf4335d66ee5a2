"""RL of a causal language model on pass@k: every advantage comes from a pkpo server, through its client."""
