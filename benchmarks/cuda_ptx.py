"""The kernels' PTX as text: parted into entries, put into words that the verifier knows, and with mistakes planted.

What sentryward does not know, and what is said in its place, each with the same order of the same accesses:

* an epoch flag in global memory. ``store_release`` by one thread of a block, ``load_acquire`` in a loop by one thread
  for each block, becomes an mbarrier for each pair of blocks, at which the one arrives and for which the other waits,
  with release and acquire, in a cluster as large as the team. Two of them in turn: a flag's reader may be an epoch
  late, and asks for at least its epoch, where an mbarrier knows only odd from even.
* ``mapa`` of a generic address, and generic stores to what it gives: the same in the cluster's window of shared memory.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Entry(NamedTuple):
    """A kernel, with what stands before all of them; and the bytes of its parameters, which a launch does not say."""

    text: str
    parameter_bytes: tuple[int, ...]


ENTRY = re.compile(r"(?ms)^\.visible \.entry (\w+)\((.*?)\n\)(.*?)^\}\n")
SCALAR_OR_ARRAY = re.compile(r"\.param .*?\.[busf](\d+) \w+(?:\[(\d+)\])?")
DECLARATIONS = re.compile(r"(?m)^\{\n(?:\s*\.(?:reg|local|shared) .*\n)+")
BARRIER = re.compile(
    r"bar\.sync\s+0;|barrier\.cluster\.arrive\.release;(?:\s*//.*)*\s*barrier\.cluster\.wait\.acquire;"
)
WAIT = re.compile(r"@!p bra WAIT;")  # of with_mbarriers
COPIES = re.compile(r"cp\.async\.wait_group 2;")
RELEASE = re.compile(r"st\.release\.gpu\.global\.u32 \[%rd\d+\], (%r\d+);")
# With the subtraction that follows, and says which epoch is waited for.
ACQUIRE = re.compile(
    r"ld\.acquire\.gpu\.global\.u32 (%r\d+), \[%rd\d+\];((?:\s*//.*)*\s*sub\.s32\s+%r\d+, \1, (%r\d+);)"
)
MAPA = re.compile(r"mapa\.u64 (%rd\d+), (%rd\d+), (%r\d+);")
GENERIC_STORE = re.compile(r"(?m)^(\s*)st\.((?:v\d\.)?[bfu]\d+)")


def entries(ptx: str) -> dict[str, Entry]:
    """Each kernel of a file, as a file of its own."""
    prelude = ptx[: ptx.index(".visible .entry")]
    found = {}
    for match in ENTRY.finditer(ptx):
        sizes = SCALAR_OR_ARRAY.findall(match[2])
        found[match[1]] = Entry(
            prelude + match[0], tuple(int(bits) // 8 * (int(length) if length else 1) for bits, length in sizes)
        )
    return found


def count(pattern: re.Pattern[str], text: str) -> int:
    return sum(1 for _ in pattern.finditer(text))


def with_mbarriers(text: str, blocks: int) -> str:
    """An entry whose blocks wait for flags, in teams of so many, with mbarriers of a cluster in their place."""
    # Those of an epoch's parity lie together, one for each block that arrives; 8 bytes each.
    flags = f"""mov.u32 a, rnn_ext_flags;
        and.b32 b, {{epoch}}, 1;
        mad.lo.u32 a, b, {8 * blocks}, a;"""

    def arrive(match: re.Match[str]) -> str:
        for_each = "".join(
            f"mapa.shared::cluster.u32 c, a, {rank};\nmbarrier.arrive.release.cluster.shared::cluster.b64 _, [c];\n"
            for rank in range(blocks)
        )
        return f"""{{ .reg .b32 a, b, c;
        {flags.format(epoch=match[1])}
        mov.u32 b, %cluster_ctarank;
        mad.lo.u32 a, b, 8, a;
        {for_each}}}"""

    def wait(match: re.Match[str]) -> str:
        # Thread n waits for block n. Epochs begin with 1: an mbarrier's first is 1 or 2, its second 3 or 4. Then the
        # flag reads as far ahead, and the loop ends.
        return f"""{{ .reg .pred p; .reg .b32 a, b;
        {flags.format(epoch=match[3])}
        mov.u32 b, %tid.x;
        mad.lo.u32 a, b, 8, a;
        sub.u32 b, {match[3]}, 1;
        shr.u32 b, b, 1;
        and.b32 b, b, 1;
        WAIT:
        mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [a], b;
        @!p bra WAIT;
        mov.u32 {match[1]}, 2147483647; }}{match[2]}"""

    flags_read = text.count("ld.acquire")
    text, arrivals = RELEASE.subn(arrive, text)
    text, waits = ACQUIRE.subn(wait, text)
    if arrivals != 1 or waits != flags_read or not waits:
        raise ValueError(
            f"{arrivals} of one store of a flag and {waits} of {flags_read} loads are as they were expected"
        )
    initial = "".join(f"mbarrier.init.shared::cta.b64 [a+{8 * n}], 1;\n" for n in range(2 * blocks))
    begin = f"""
        .shared .align 8 .b8 rnn_ext_flags[{16 * blocks}];
        {{ .reg .pred p; .reg .b32 a;
        mov.u32 a, %tid.x;
        setp.ne.u32 p, a, 0;
        @p bra READY;
        mov.u32 a, rnn_ext_flags;
        {initial}READY: }}
        barrier.cluster.arrive.release;
        barrier.cluster.wait.acquire;
"""
    declared = DECLARATIONS.search(text)
    assert declared is not None
    return text[: declared.end()] + begin + text[declared.end() :]


def with_shared_windows(text: str) -> str:
    """An entry that writes to other blocks' shared memory, with addresses in the cluster's window of it."""
    text, maps = MAPA.subn(r"cvta.to.shared.u64 \1, \2; mapa.shared::cluster.u64 \1, \1, \3;", text)
    text, stores = GENERIC_STORE.subn(r"\1st.shared::cluster.\2", text)
    if maps != stores or not maps:
        raise ValueError(f"{maps} addresses in other blocks, but {stores} stores to some")
    return text


def without(pattern: re.Pattern[str], nth: int, text: str, instead: str = "") -> str:
    """With one instruction less, or another in its place."""
    found = list(pattern.finditer(text))[nth]
    return text[: found.start()] + instead + text[found.end() :]
