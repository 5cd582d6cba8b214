"""What a raylet believes: nothing that a GCS says which another has replaced."""

from raylite._machines.epochs import Epochs
from raylite._wire.messages import gcs as msg
from raylite.exceptions import UnavailableError


def believe(epochs: Epochs, epoch: msg.Epoch | None) -> None:
    """Refuse to hear news of a life of the GCS; of an unnamed one they are heard.

    Raises:
        UnavailableError: It is not the latest of this node's cluster.
    """
    if epoch is not None and not epochs.obeys(epoch.cluster_id, epoch.number):
        raise UnavailableError(
            f"life {epoch.number} of it speaks, and life {epochs.number} is known"
        )
