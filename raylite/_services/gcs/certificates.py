"""The Certificate service: what nodes show to one another, signed by the cluster's CA."""

from collections.abc import Callable

from raylite._kernel.service import Service, handles
from raylite._protocol import gcs
from raylite._wire.messages import gcs as msg


class CertificateService(Service, serves=(gcs.Certificates,)):
    """Signs for whoever reaches it: that it is a member of the cluster was proven before.

    Args:
        sign: Returns the certificate for a request, both in PEM, or raises a `RayError`.
    """

    def __init__(self, sign: Callable[[str], str]) -> None:
        self._sign = sign

    @handles(gcs.Certificates.sign)
    def sign(self, request: msg.CertificateRequest) -> msg.Certificate:
        return msg.Certificate(certificate=self._sign(request.request))
