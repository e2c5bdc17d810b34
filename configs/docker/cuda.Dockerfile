# cftune for CUDA devices, for runs in containers (docs/launch.md). From the repository's root:
#   docker build -f configs/docker/cuda.Dockerfile -t registry.example.org/cftune:1.0-cuda .
FROM golang:1.26.8-bookworm AS go

FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS build
COPY --from=go /usr/local/go /usr/local/go
ENV PATH=/usr/local/go/bin:/usr/local/cuda/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
WORKDIR /src
COPY go.mod go.sum ./
COPY scripts/install-deps scripts/
RUN apt-get update && scripts/install-deps && rm -rf /var/lib/apt/lists/*
COPY . .
# For all instruction sets of CPUs: the node is not the machine that builds. CUDA_ARCHS says for which devices.
ARG CUDA_ARCHS="80-real;86-real;89-real;90a-real"
RUN CFTUNE_PORTABLE=1 CUDA_HOME=/usr/local/cuda CUDA_ARCHS="$CUDA_ARCHS" scripts/build-native --cuda \
    && go build -o build/bin/cftune ./cmd/cftune

# It has the CUDA runtime and cuBLAS; the driver comes from the node.
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04
# mpirun and ssh are for JobSets of several pods.
RUN apt-get update && apt-get install -y --no-install-recommends \
        ca-certificates libopenblas0-pthread libgomp1 libstdc++6 openmpi-bin libopenmpi3t64 openssh-client openssh-server \
    && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*
# Ubuntu's image has a user of that number.
RUN usermod --password '*' "$(id -un 1000)"
COPY --from=build /src/build/bin/cftune /opt/cftune/bin/
COPY --from=build /src/build/native/lib /opt/cftune/native/lib
COPY LICENSE NOTICE /opt/cftune/
RUN ln -s /opt/cftune/bin/cftune /usr/local/bin/cftune
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
WORKDIR /tmp
ENTRYPOINT ["cftune"]
CMD ["--help"]
