"""Puts empty shared libraries in the place of the CUDA libraries that a PyTorch package is linked to, so that it loads
on a machine without them. Every symbol is there, under its version, and answers "no device".

usage: stub-cuda.py FOLDER      FOLDER is torch/lib of the installation
"""
import os
import subprocess
import sys
import tempfile

# Libraries that are always there, or come with torch itself.
OWN = ("libc10", "libtorch", "libshm", "libcaffe2", "libgomp", "libgfortran", "libopenblas", "libarm_compute")
SYSTEM = ("libc.so", "libm.so", "libdl.so", "libpthread.so", "librt.so", "libstdc++", "libgcc_s", "ld-linux", "libutil.so")
# Symbol versions that belong to the system's libraries.
SYSTEM_VERSIONS = ("GLIBC", "GCC", "CXXABI", "GOMP", "OMP", "LIBGFORTRAN")
# Unversioned symbols that only a CUDA library can mean.
CUDA_PREFIXES = ("cu", "__cu", "nccl", "nv", "Nv")
# These return text that torch prints.
TEXT_SUFFIXES = ("GetErrorString", "GetErrorName", "GetStatusString")
NO_DEVICE = 100  # cudaErrorNoDevice


def lines(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def survey(paths):
    """Returns the libraries that are needed and not there, and {(symbol, version)} that nothing here defines."""
    here = {os.path.basename(p) for p in paths}
    needed, undefined, defined = [], set(), set()
    for path in paths:
        for line in lines("readelf", "-dW", path):
            if "(NEEDED)" in line:
                name = line.split("[")[1].split("]")[0]
                if name not in here and name not in needed and not name.startswith(OWN + SYSTEM):
                    needed.append(name)
        for line in lines("nm", "-D", "--undefined-only", path):
            symbol, _, version = line.split()[-1].replace("@@", "@").partition("@")
            undefined.add((symbol, version))
        for line in lines("nm", "-D", "--defined-only", path):
            defined.add(line.split()[-1].split("@")[0])
    return needed, {(s, v) for s, v in undefined if s not in defined}


def assign(needed, undefined):
    """Maps library -> version -> symbols. A version names its library ("libcublas.so.12"); what has none goes to the first."""
    content = {name: {} for name in needed}
    for symbol, version in undefined:
        if version.startswith(SYSTEM_VERSIONS):
            continue
        if version:
            stem = [n for n in needed if n == version or n.split(".so")[0] in version]
            owner = stem[0] if stem else needed[0]
        elif symbol.startswith(CUDA_PREFIXES):
            owner = needed[0]
        else:
            continue
        content[owner].setdefault(version, set()).add(symbol)
    return content


def build(folder, name, versions):
    code = []
    for symbol in sorted(set().union(*versions.values())) if versions else []:
        if symbol.endswith(TEXT_SUFFIXES):
            code.append(f'const char *{symbol}(void) {{ return "no CUDA here"; }}')
        else:
            code.append(f"long {symbol}(void) {{ return {NO_DEVICE}; }}")
    code.append("int cftune_stub_of_a_cuda_library;")
    script = "".join(f"{v} {{ global: {'; '.join(sorted(symbols))}; }};\n" for v, symbols in versions.items() if v)
    with tempfile.TemporaryDirectory() as tmp:
        source, mapping = os.path.join(tmp, "stub.c"), os.path.join(tmp, "versions")
        with open(source, "w") as f:
            f.write("\n".join(code) + "\n")
        with open(mapping, "w") as f:
            f.write(script)
        command = ["cc", "-shared", "-fPIC", "-fno-builtin", "-w", "-o", os.path.join(folder, name), source, f"-Wl,-soname,{name}"]
        if script:
            command.append(f"-Wl,--version-script={mapping}")
        subprocess.run(command, check=True)


def main():
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    folder = sys.argv[1]
    paths = sorted(os.path.join(folder, f) for f in os.listdir(folder) if ".so" in f)
    needed, undefined = survey(paths)
    if not needed:
        print("stub-cuda: nothing is missing")
        return
    for name, versions in assign(needed, undefined).items():
        build(folder, name, versions)
        print(f"stub-cuda: {name}: {sum(map(len, versions.values()))} symbols")


if __name__ == "__main__":
    main()
