"""The core worker: the part of raylite inside every driver and worker."""
