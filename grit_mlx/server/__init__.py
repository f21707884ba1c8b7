"""One process with one set of weights for every program on the machine; see docs/serve.md."""
