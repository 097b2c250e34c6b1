"""Everything of Kvorum that touches the host, and the API of the cluster: one process a node, `kvorum-agent`.

`services` are thin fronts; the work is in the rooms below them (`guests`, `storage`, `migration`, `tasks`, `membership`), and
`access` decides who may ask for it. What the cluster agrees on is clusterfs's, what HA decides is ha's.
"""
