"""N nodes of a cluster on one machine, made of namespaces: for the demo, the tests and the benchmarks.

A node here is a real node in all but the kernel: its own processes, network, mounts, host name, cgroups, libvirtd and
Kvorum daemons. What a product needs on a real host does not belong here, and nothing outside this package imports it
(the command line loads `lab.cli` by its entry point).
"""
