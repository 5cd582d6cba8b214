"""Testing with raylite: clusters embedded in a test, and simulation in virtual time."""

from raylite.testing.cluster import LocalCluster as LocalCluster
from raylite.testing.nursery import Nursery as Nursery
