"""The claims of PKPO and of Pass@k Training, each tried on a small Gemma-2, every advantage from a running server.

`python -m trainer_example.experiments` runs what has not been run, and writes docs/results.md from what has.
"""
