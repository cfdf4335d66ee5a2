"""Real servers under mixed load and injected faults for an hour: what they answer, and what they keep."""
