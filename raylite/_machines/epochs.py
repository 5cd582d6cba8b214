"""Epochs: which life of the GCS a node obeys.

Each start of a GCS is a life, and has a greater number than all before it of the same cluster. One that has been
replaced may not know so: it was stopped meanwhile, or runs on tables that were put back. Whatever it
says, of nodes that are dead and of leases that must end, is not to be done.
"""


class Epochs:
    """The latest life that one node has heard of."""

    def __init__(self) -> None:
        self._cluster: bytes | None = None
        self.number: int = 0  # 0 for none

    def is_replaced(self, cluster: bytes, number: int) -> bool:
        """Whether a life is an earlier one of the node's cluster: the node may not register with it."""
        return cluster == self._cluster and number < self.number

    def registered(self, cluster: bytes, number: int) -> None:
        """A life has taken the node in. If it is another cluster's, that is this node's from now on.

        So it is when the tables of a cluster were lost, and it began anew.
        """
        if not self.is_replaced(cluster, number):
            self._cluster, self.number = cluster, number

    def obeys(self, cluster: bytes, number: int) -> bool:
        """Whether to do what a life says: it is the latest, as far as is known here."""
        if self._cluster is None:
            self.registered(cluster, number)
        if cluster != self._cluster or number < self.number:
            return False
        self.number = number
        return True

    def check(self) -> None:
        """Assert what always holds."""
        assert self.number == 0 or self._cluster is not None
