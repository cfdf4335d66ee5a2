"""The gRPC service: rewards of groups of samples in, advantages that optimise pass@k out.

main        argv, exit codes
settings    everything that can be set, once
lifecycle   one serving process: start, readiness, signals, drain
workers     several of them behind one port and one metrics endpoint
certificates, tokens  who may call, read again when it changes
grants      for which runs
probe       the health probe of containers
servicer    what each call means
stream      many batches in flight on one call
exchange    one request and its answer: decoding, computing, accounting
computation small batches at once, big ones in threads
memory      what is kept, and what is given back
codec       wire -> core -> wire
metrics     what is counted
curves      the pass@k curve of every run
refusal     every answer that is not advantages
"""
