"""The replicated config store of a node: one tree of small files, the same on every node, a pure function of a log.

Inside out: `tree`, `rules`, `commands`, `state` (pure) · `machine` (the state that a replica applies into) · `proposer` (a
command's way into the log) · `mount` and `server` (the two fronts) · `daemon` and `main`. Other rooms use `client` only.
Consensus itself is `clusterfs.raft`, which knows nothing of trees; guests, users and what a file means are other rooms'.
"""
