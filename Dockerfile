# The three programs with their GPU kernels, on Debian, without Python or a compiler. `make docker`
# builds it; docs/installing.md shows how to run it.

# Debian 12, so that the programs need no newer glibc than the second stage has.
ARG RUST_VERSION=1.95.0

FROM rust:${RUST_VERSION}-bookworm AS build
ARG RUST_VERSION
# The image's own Rust, whatever rust-toolchain.toml names.
ENV RUSTUP_TOOLCHAIN=${RUST_VERSION}
# Debian's versions follow from the image's release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ make python3 python3-venv xz-utils \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src/warpsmith
# The hash and the date of the commit, which is not in the build context.
ARG REVISION
ARG DATE
RUN test -n "$REVISION$DATE" || { echo "REVISION and DATE are missing: use make docker, or add --build-arg REVISION=\$(git log -1 --format=%H) --build-arg DATE=\$(git log -1 --format=%cs)" >&2; exit 2; }
# Only the libraries that are loaded, out of wheels with more. CUDA_LIBRARIES=0 leaves them out: our
# own matmuls run then, and one GPU per run.
ARG CUDA_LIBRARIES=1
COPY dev/requirements-docker.txt dev/
RUN mkdir -p /libraries/lib /libraries/licenses \
    && if [ "$CUDA_LIBRARIES" = 1 ]; then \
        python3 -m venv /tmp/venv \
        && /tmp/venv/bin/pip install --no-cache-dir --no-deps --require-hashes --target /tmp/wheels -r dev/requirements-docker.txt \
        && find /tmp/wheels \( -name 'libcublasLt.so.13' -o -name 'libnccl.so.2' \) -exec cp {} /libraries/lib/ \; \
        && test -s /libraries/lib/libcublasLt.so.13 && test -s /libraries/lib/libnccl.so.2 \
        && for info in /tmp/wheels/*.dist-info; do \
            find "$info" -iname 'license*' -type f -exec cp {} "/libraries/licenses/$(basename "$info" .dist-info).txt" \; ; \
        done \
        && test -s /libraries/licenses/nvidia_cublas-*.txt && test -s /libraries/licenses/nvidia_nccl_cu13-*.txt \
        && rm -rf /tmp/wheels /tmp/venv; \
    fi
COPY . .
# Empty compiles kernels for all architectures; 90a only for an H100, which takes a sixth of the time.
ARG KERNEL_ARCHES=
# What is compiled stays in caches, so that another build of the image compiles what has changed.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/warpsmith/target \
    --mount=type=cache,target=/src/warpsmith/build \
    WARPSMITH_COMMIT="$REVISION $DATE" make dist MPI=0 PACK=0 KERNEL_ARCHES="$KERNEL_ARCHES" \
    && mkdir /warpsmith \
    && tar -C /warpsmith --strip-components=1 -xf dist/warpsmith-*.tar.xz

FROM debian:bookworm-slim
ARG REVISION
ARG VERSION=unknown
LABEL org.opencontainers.image.title="warpsmith" \
    org.opencontainers.image.description="GPT-2 and GPT-3 training with hand-written CUDA kernels, orchestrated from Rust" \
    org.opencontainers.image.licenses="MIT" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
COPY --from=build /libraries/lib/ /usr/local/lib/
COPY --from=build /warpsmith/ /opt/warpsmith/
COPY --from=build /libraries/licenses/ /opt/warpsmith/licenses/
# HOME is where downloads are cached: in the volume, and writable for any --user.
RUN ldconfig && useradd --uid 1000 --home-dir /work --create-home --shell /usr/sbin/nologin warpsmith
# NVIDIA's container toolkit brings the driver: to compute, and for power and temperature.
ENV PATH=/opt/warpsmith:$PATH \
    HOME=/work \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
WORKDIR /work
VOLUME /work
# Runs the program that the arguments name, in its place: signals reach it.
ENTRYPOINT ["/usr/bin/env", "--"]
CMD ["warpsmith", "--help"]
