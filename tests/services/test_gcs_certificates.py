"""The Certificate service: it signs for who reaches it, and a bad request ends nothing."""

import anyio
import anyio.lowlevel
import pytest

from raylite._kernel.host import Host
from raylite._kernel.memory import MemoryNetwork, Switch
from raylite._protocol.gcs import Certificates
from raylite._services.gcs.certificates import CertificateService
from raylite._wire.messages import gcs as msg
from raylite.exceptions import CertificateError
from tests.services.rig import simulated


def sign(request: str) -> str:
    if request != "a request":
        raise CertificateError("this is no request")
    return "signed"


@simulated
async def test_a_request_is_signed_or_refused_and_the_service_lives() -> None:
    switch = Switch()
    there, here = MemoryNetwork(switch), MemoryNetwork(switch)
    await there.listen("gcs")
    host = Host(there, CertificateService(sign))
    running = host.start("gcs")
    certificates = Certificates(here.connect("gcs"))
    for _ in range(2):
        with pytest.raises(CertificateError, match="this is no request"):
            await certificates.sign(msg.CertificateRequest(request="nonsense"))
        signed = await certificates.sign(msg.CertificateRequest(request="a request"))
        assert signed.certificate == "signed"
    await here.close()
    host.stop()
    await running
    await anyio.lowlevel.checkpoint()
