# The project's commands. `just` lists them; each is also plain to run without just.

_list:
    @just --list --unsorted

# A cluster of three nodes on this machine; Ctrl-C stops it
dev *args:
    cargo run --release --locked -- dev {{args}}

# Build (debug)
build:
    cargo build --locked

# The tests
test *args:
    cargo test --locked {{args}}

# Simulated clusters: a range of seeds e.g. 0..100000; goes on from where it was stopped
seeds *args:
    scripts/seeds {{args}}

# Bugs planted on purpose: each must be found by the simulator
plants *args:
    scripts/plants {{args}}

# Lints, warnings denied
lint:
    cargo clippy --all-targets --locked -- -D warnings

# Format the code
fmt:
    cargo fmt

# Is the code formatted?
fmt-check:
    cargo fmt --check

# Everything a change must pass before it is handed in: build, tests, lints, format
check: build test lint fmt-check

# What CI runs: `check` and every script that fits its time
ci:
    bash .ci/run

# The API against its OpenAPI description: Schemathesis, Spectral, a generated Python client
check-api *args:
    scripts/check-api {{args}}

# Swagger UI's "Try it out" in a headless Chromium
check-swagger *args:
    scripts/check-swagger {{args}}

# The console in a headless Chromium: its views, its form, a node that dies and comes back
check-console *args:
    scripts/check-console {{args}}

# promtool on every node, every panel of every dashboard against a Prometheus, every alert; --files: without nodes
check-dashboards *args:
    scripts/check-dashboards {{args}}

# Traces over OTLP, of a build with the feature `otlp`, at a collector
check-traces *args:
    scripts/check-traces {{args}}

# The container image and compose.yaml, with a node killed and back
check-compose *args:
    scripts/check-compose {{args}}

# Real processes and real faults: kill -9, SIGSTOP, cut links, clocks, counters, swapped ports, slow clients, memory
check-faults *args:
    scripts/check-faults {{args}}

# Nodes that stop in order, are upgraded, backed up and restored under load
check-lifecycle *args:
    scripts/check-lifecycle {{args}}

# The Debian package: built, installed, started by systemd's files, removed
check-package *args:
    scripts/check-package {{args}}

# The same work against three nodes of etcd and three of ours
bench-vs-etcd *args:
    scripts/bench-vs-etcd {{args}}
