# mailramp in an image: ordinary user, one volume, nothing open to anybody by itself.
#
#   docker build -t mailramp .
#   docker run -v /srv/mailramp/etc:/etc/mailramp:ro -v mailramp-data:/var/lib/mailramp --stop-timeout 60 mailramp
#
# The settings inside are conf/mailramp.toml, whose listeners are on loopback: reachable from within the container only,
# and its servers are examples. The operator mounts /etc/mailramp/mailramp.toml with the real servers and a listener such
# as
#   [[listeners]]
#   bind = "0.0.0.0:2525"
#   allow_from = ["172.18.0.0/16"]      # the application's network; a private range is every neighbour in a cloud
# Files with secrets must be readable by uid 10001 and by nobody else. `http.bind` is loopback only in this version: to
# scrape /metrics, share the network namespace (a sidecar, or --network host).
#
# The data directory is always the volume: MAILRAMP__DATA_DIR below wins over `data_dir` in the file. Two containers on one
# volume are refused by a lock; two volumes would be two quotas. The root may be read-only (--read-only).

FROM rust:1.95-bookworm AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY src ./src
COPY conf ./conf
ARG REVISION=unknown
ENV MAILRAMP_REVISION=$REVISION
RUN cargo build --release --locked --bin mailramp

FROM debian:bookworm-slim
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/mailramp --shell /usr/sbin/nologin mailramp
RUN install -d -o mailramp -g mailramp -m 0700 /var/lib/mailramp
# Whom to trust when a next hop's certificate is verified; the slim image has no certificates.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /build/target/release/mailramp /usr/local/bin/mailramp
COPY conf/mailramp.toml /etc/mailramp/mailramp.toml
ENV MAILRAMP_CONFIG=/etc/mailramp/mailramp.toml
ENV MAILRAMP__DATA_DIR=/var/lib/mailramp
USER 10001:10001
VOLUME ["/var/lib/mailramp"]
EXPOSE 2525 8825
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["mailramp", "status"]
ENTRYPOINT ["mailramp"]
CMD ["run"]
