# One node of a3.store. The first stage builds the program, the second carries nothing but it.
#   docker build -t a3-store .          (add --network host where the build has no network of its own)
#   docker run -p 127.0.0.1:8001:8001 -v a3:/var/lib/a3 -e BIND_ADDR=0.0.0.0 -e ADVERTISE_ADDR=... a3-store

FROM rust:1-bookworm AS build
WORKDIR /src
# Frames and symbols stay for backtraces; line tables, most of the binary's size, do not.
ENV CARGO_PROFILE_RELEASE_DEBUG=none CARGO_TERM_COLOR=never
# The dependencies alone first, so that a change of the project's own code does not build them again.
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock build.rs ./
COPY proto proto
RUN mkdir src benches && touch src/lib.rs benches/mesh.rs benches/storage.rs && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked && rm -r src
COPY console console
COPY src src
RUN find src -name '*.rs' -exec touch {} + && cargo build --release --locked

FROM debian:bookworm-slim
RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/a3 --no-create-home a3 \
    && install --directory --owner a3 --group a3 /var/lib/a3
COPY --from=build /src/target/release/a3 /usr/local/bin/a3
USER a3
ENV DATA_DIR=/var/lib/a3
VOLUME /var/lib/a3
# Node N listens on 8000+N (REST) and 50050+N (mesh).
EXPOSE 8001 50051
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 \
    CMD a3 health --ready --host "http://127.0.0.1:${HTTP_PORT:-$((8000 + ${NODE_NUM:-1}))}"
ENTRYPOINT ["a3"]
CMD ["serve"]
