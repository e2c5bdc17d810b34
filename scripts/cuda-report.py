#!/usr/bin/env python3
"""Sums up what ptxas said of the CUDA kernels: registers, spills and stack for each kernel and architecture, as Markdown.

usage: scripts/cuda-report.py [LOG]     (default: build/native/build-cuda.log, written by scripts/build-native --cuda; only
                                        what was compiled in that run is in it: remove build/native/obj/src/cuda first)
Exit code 1 if any kernel spills more than a few words, or if the log holds no kernels.
"""
import collections
import re
import subprocess
import sys

MOST_SPILLED = 64  # bytes; a few words outside the inner loop cost nothing that can be measured


def kernels(log):
    """Yields (name, architecture, registers, stack, spilled bytes)."""
    name = arch = None
    stack = spilled = 0
    for line in log:
        if m := re.search(r"Compiling entry function '(\S+)' for '(sm_\w+)'", line):
            name, arch = m.groups()
        elif m := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, spilled = int(m[1]), int(m[2]) + int(m[3])
        elif (m := re.search(r"Used (\d+) registers", line)) and name:
            yield name, arch, int(m[1]), stack, spilled
            name = None


def short(names):
    out = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout.split("\n")
    clean = []
    for n in out[: len(names)]:
        n = n.replace("cft::cuda::", "").replace("(anonymous namespace)::", "")
        n = re.sub(r"\((\w+)\)(?=\d)", "", n.replace("void ", ""))  # the types of template arguments
        clean.append(re.sub(r"\(.*", "", n))
    return dict(zip(names, clean))


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else "build/native/build-cuda.log"
    if path in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    with open(path, encoding="utf-8", errors="replace") as log:
        rows = list(kernels(log))
    if not rows:
        print(f"cuda-report: {path} tells of no kernel", file=sys.stderr)
        return 1
    names = short(sorted({r[0] for r in rows}))
    archs = sorted({r[1] for r in rows}, key=lambda arch: (int(re.sub(r"\D", "", arch)), arch))
    table = collections.defaultdict(dict)
    for name, arch, registers, stack, spilled in rows:
        # Kernels for many types or ways are one line: the largest.
        key = re.sub(r"^(dequantize_kernel|move_kernel)<\d+, ", r"\1<all, ", names[name])
        old = table[key].get(arch, (0, 0, 0))
        table[key][arch] = (max(old[0], registers), max(old[1], stack), max(old[2], spilled))
    print("| kernel | " + " | ".join(archs) + " |\n|---|" + "---|" * len(archs))
    for key in sorted(table):
        cells = []
        for arch in archs:
            registers, stack, spilled = table[key].get(arch, (0, 0, 0))
            cells.append(str(registers) + (f" (stack {stack}" + (f", spills {spilled}" if spilled else "") + ")" if stack else ""))
        print(f"| {key} | " + " | ".join(cells) + " |")
    spilling = [r for r in rows if r[4] > MOST_SPILLED]
    print(f"\n{len(rows)} kernels compiled; {sum(1 for r in rows if r[4])} spill at all, {len(spilling)} more than {MOST_SPILLED} bytes.")
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
