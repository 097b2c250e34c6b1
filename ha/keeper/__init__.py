"""The lease keeper: a small synchronous process that renews this node's lease and ends its HA guests when it cannot.

It must go on working when everything else on the node stalls, so it shares nothing with the daemons: no event loop, no
store client, no configuration parsing. It decides nothing about where guests run. `core` is its pure mind.
"""
