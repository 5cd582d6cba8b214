"""The four components: GCS, raylet, object store, core worker. None imports another."""
