"""Each framework's own advantages beside ours, on the same rewards: what docs/integrations/comparison.md tells.

`published`, `verl`, `trl` and `tunix` are each run by the Python of the environment that has what they measure, and
print what was answered, as JSON. Nothing there is judged: `judgement` holds every answer to the exact ones afterwards.
"""
