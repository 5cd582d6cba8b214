"""A process's attachment to a cluster: the node's process tree, sessions, functions, environments."""
