"""Where the trainers already are: one module per framework, each of which needs that framework to be installed.

`objective` is what they share: a run's settings, and the call they come to. It needs nothing but the client.
"""
