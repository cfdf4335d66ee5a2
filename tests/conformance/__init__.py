"""What a server of pkpo.v1 must answer, for servers and clients in any language: docs/conformance.md."""
