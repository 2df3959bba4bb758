"""Transfer syntaxes: what is read, by which kind of decoder (DICOM PS3.5, annex A; PS3.6, A-1)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

IMPLICIT = "1.2.840.10008.1.2"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"


class Family(Enum):
    """A kind of decoder."""

    NATIVE = "none"
    RLE = "RLE"
    JPEG = "JPEG"
    JPEG_LOSSLESS = "JPEG lossless"
    JPEG_LS = "JPEG-LS"
    JPEG_2000 = "JPEG 2000"
    HTJ2K = "High-Throughput JPEG 2000"


@dataclass(frozen=True)
class Syntax:
    """A transfer syntax.

    Attributes:
        name: Name for people.
        family: What decodes it.
        lossy: Whether it may lose something.
    """

    name: str
    family: Family
    lossy: bool = False


SYNTAXES = {
    IMPLICIT: Syntax("Implicit VR Little Endian", Family.NATIVE),
    "1.2.840.10008.1.2.1": Syntax("Explicit VR Little Endian", Family.NATIVE),
    BIG_ENDIAN: Syntax("Explicit VR Big Endian", Family.NATIVE),
    DEFLATED: Syntax("Deflated Explicit VR Little Endian", Family.NATIVE),
    "1.2.840.10008.1.2.5": Syntax("RLE Lossless", Family.RLE),
    "1.2.840.10008.1.2.4.50": Syntax("JPEG Baseline", Family.JPEG, lossy=True),
    "1.2.840.10008.1.2.4.51": Syntax("JPEG Extended", Family.JPEG, lossy=True),
    "1.2.840.10008.1.2.4.57": Syntax("JPEG Lossless", Family.JPEG_LOSSLESS),
    "1.2.840.10008.1.2.4.70": Syntax("JPEG Lossless SV1", Family.JPEG_LOSSLESS),
    "1.2.840.10008.1.2.4.80": Syntax("JPEG-LS Lossless", Family.JPEG_LS),
    "1.2.840.10008.1.2.4.81": Syntax("JPEG-LS Near-Lossless", Family.JPEG_LS, lossy=True),
    "1.2.840.10008.1.2.4.90": Syntax("JPEG 2000 Lossless", Family.JPEG_2000),
    "1.2.840.10008.1.2.4.91": Syntax("JPEG 2000", Family.JPEG_2000, lossy=True),
    "1.2.840.10008.1.2.4.201": Syntax("HTJ2K Lossless", Family.HTJ2K),
    "1.2.840.10008.1.2.4.202": Syntax("HTJ2K Lossless RPCL", Family.HTJ2K),
    "1.2.840.10008.1.2.4.203": Syntax("HTJ2K", Family.HTJ2K, lossy=True),
}
