# The gateway as a static binary, alone in its image. It trusts the public authorities by itself, writes no file, and
# needs no user but a number.
#
#   docker build -t fusebox .
#   docker run --read-only -p 8080:8080 -p 127.0.0.1:8081:8081 -v ./fusebox.toml:/etc/fusebox/fusebox.toml:ro fusebox
#
# In the file, `listen` and `admin_listen` have to be "0.0.0.0:8080" and "0.0.0.0:8081".
FROM rust:1.95-alpine AS build
RUN apk add --no-cache musl-dev
WORKDIR /fusebox
COPY . .
RUN CARGO_PROFILE_RELEASE_STRIP=true cargo build --locked --release --features proxy --bin fusebox

FROM scratch
COPY --from=build /fusebox/target/release/fusebox /fusebox
USER 65532:65532
EXPOSE 8080 8081
ENTRYPOINT ["/fusebox"]
CMD ["serve", "--config", "/etc/fusebox/fusebox.toml"]
