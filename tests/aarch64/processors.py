"""Processors that qemu is told to be, and what the kernel of a board says of each.

qemu 7.2 shows a program the /proc/cpuinfo of this machine. The library by which ONNX Runtime knows
processors (cpuinfo) crashes on one of x86, so a file in the words of an aarch64 kernel takes its
place, as newer versions of qemu make it themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

_BASE = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_DOT_PRODUCT = f"{_BASE} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
_ALL = f"{_DOT_PRODUCT} sha3 sm3 sm4 sha512 fcma jscvt flagm sve sve2 i8mm svei8mm bf16 svebf16"


@dataclass(frozen=True)
class Processor:
    """What qemu is.

    Attributes:
        name: Value of its `-cpu`.
        what: What it has that matters here.
        identity: Implementer, variant, part and revision, as its register MIDR_EL1 has them.
        features: As the kernel lists them.
        has_dot_product: Whether four INT8 products are one instruction (UDOT, SDOT).
    """

    name: str
    what: str
    identity: tuple[int, int, int, int]
    features: str
    has_dot_product: bool

    def cpuinfo(self, cores: int = 2) -> str:
        """What /proc/cpuinfo says."""
        implementer, variant, part, revision = self.identity
        return "\n".join(
            f"processor\t: {core}\nBogoMIPS\t: 100.00\nFeatures\t: {self.features}\n"
            f"CPU implementer\t: {implementer:#04x}\nCPU architecture: 8\n"
            f"CPU variant\t: {variant:#x}\nCPU part\t: {part:#05x}\nCPU revision\t: {revision}\n"
            for core in range(cores)
        )


# Identities: qemu 7.2, target/arm/cpu64.c. Features: Linux, Documentation/arm64/elf_hwcaps.rst.
PROCESSORS = {
    one.name: one
    for one in (
        Processor(
            "max",
            "all that qemu has: dot product, INT8 matrix multiplication, SVE",
            (0x00, 0x0, 0x051, 0),
            _ALL,
            has_dot_product=True,
        ),
        Processor(
            "cortex-a76",
            "dot product, no SVE, as the Cortex-A78AE of Orin",
            (0x41, 0x4, 0xD0B, 1),
            _DOT_PRODUCT,
            has_dot_product=True,
        ),
        Processor(
            "cortex-a57", "no dot product", (0x41, 0x1, 0xD07, 0), _BASE, has_dot_product=False
        ),
    )
}
