# cftune for CPUs, for runs in containers (docs/launch.md). From the repository's root:
#   docker build -f configs/docker/cpu.Dockerfile -t registry.example.org/cftune:1.0 .
FROM golang:1.26.8-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
COPY scripts/install-deps scripts/
RUN apt-get update && scripts/install-deps && rm -rf /var/lib/apt/lists/*
COPY . .
# For all instruction sets: the node is not the machine that builds.
RUN CFTUNE_PORTABLE=1 scripts/build-native && go build -o build/bin/cftune ./cmd/cftune

FROM debian:12.12-slim
# mpirun and ssh are for JobSets of several pods.
RUN apt-get update && apt-get install -y --no-install-recommends \
        ca-certificates libopenblas0-pthread libgomp1 libstdc++6 openmpi-bin libopenmpi3 openssh-client openssh-server \
    && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*
RUN useradd --uid 1000 --user-group --create-home --shell /bin/sh --password '*' cftune
COPY --from=build /src/build/bin/cftune /opt/cftune/bin/
COPY --from=build /src/build/native/lib /opt/cftune/native/lib
COPY LICENSE NOTICE /opt/cftune/
RUN ln -s /opt/cftune/bin/cftune /usr/local/bin/cftune
USER 1000:1000
WORKDIR /tmp
ENTRYPOINT ["cftune"]
CMD ["--help"]
