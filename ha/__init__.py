"""High availability: guests whose node dies run again elsewhere, and never twice.

Three processes' worth of code. The *keeper* (`ha.keeper`) holds this node's lease and ends the guests when it cannot. The
*manager* (`ha.manager`) runs where the store's leader is and decides which node runs which guest. The *local resource
manager* (`ha.lrm`) carries out the orders for its node. All three are pure cores that take a value and return one;
`ha.sim` drives them through any number of simulated disasters, `ha.main` through real ones.

What must stay out: how a guest is started or moved (the agent's), how the store agrees (clusterfs').
"""
