# backhaul: demo, test, powercut, lint, build, install. Each target first installs the Debian packages it misses (deploy/need).

CARGO ?= cargo
PREFIX ?= /usr
DESTDIR ?=

AGENT = target/release/backhaul
NEED = sh deploy/need

# What `make long` runs, in this order; each is a target of its own.
LONG = powercut-long rot-long fuzz-long cuts-long kill-long model-long mutants-long

.PHONY: all build demo test powercut powercut-long long kill-long cuts-long bench-outbox bench-agent lint install clean FORCE

all: build

# The agent alone, as it goes to a gateway: no SQLite in it.
build:
	@$(NEED) pkg-config libssl-dev
	$(CARGO) build --release --bin backhaul

# Real telemetry of this machine through an agent and a receiver that are cut, stalled and killed meanwhile.
demo:
	@$(NEED) pkg-config libssl-dev
	$(CARGO) build --release --bins --features receiver
	$(CARGO) run --release --features receiver --example demo

# Every test, part by part, and the minutes of each at the end.
test:
	@$(NEED) pkg-config libssl-dev openssl python3 e2fsprogs
	@CARGO="$(CARGO)" sh tests/parts

# The power-cut campaign: every short string of operations, cut at every call to the disk. CI's part, SECONDS of it;
# POWERCUT='…' replays one state.
SECONDS ?= 540
powercut:
	@$(NEED) pkg-config libssl-dev
	POWERCUT_SECONDS=$(SECONDS) $(CARGO) test --profile powercut --test powercut -- --nocapture

# 10⁹ states and more: a day on two cores. Stopped, it goes on where it was.
powercut-long:
	@$(NEED) pkg-config libssl-dev
	POWERCUT_LONG=1 $(CARGO) test --profile powercut --test powercut nothing_promised -- --nocapture

# Hours: every long entry, and the minutes of each at the end. Interrupted, it goes on with the first one that has not
# passed on this source (FRESH=1: with all of them).
long:
	@sh tests/long $(LONG)

# 15,001 SIGKILLs of agent and receiver; one more than the 15,000 power cycles reported of Mosquitto on a rig.
kill-long:
	@$(NEED) pkg-config libssl-dev
	KILLS=15001 $(CARGO) test --features receiver --test kill every_ -- --nocapture

# The outbox beside a raw file, SQLite, redb and queue-file on ext4: bytes, flushes, speed. As root, with loop devices.
bench-outbox:
	@$(NEED) pkg-config libssl-dev e2fsprogs util-linux
	$(CARGO) build --release --manifest-path bench/Cargo.toml --target-dir target/bench
	mkdir -p target/bench/work
	target/bench/release/backhaul-bench --work target/bench/work --svg docs/outbox-bench.svg

# Memory, wake-ups and CPU of the release agent, at rest and under load, against the receiver.
bench-agent:
	@$(NEED) pkg-config libssl-dev python3
	$(CARGO) build --release --bins --features receiver
	python3 bench/agent.py target/release/backhaul target/release/backhaul-receiver 500000 target

# Power cuts of a filmed ext4 under the real agent, 2,000 of them. As root.
cuts-long:
	@$(NEED) pkg-config libssl-dev e2fsprogs
	CUTS=500 ROUNDS=4 $(CARGO) test --features receiver --test real_fs -- --nocapture --test-threads=2

lint:
	@$(NEED) pkg-config libssl-dev
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path bench/Cargo.toml
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) clippy --all-targets --features receiver -- -D warnings

# As root, or into DESTDIR. A configuration that is there stays as it is.
install: $(AGENT)
	install -D -m 0755 $(AGENT) $(DESTDIR)$(PREFIX)/bin/backhaul
	install -d -m 0755 $(DESTDIR)/etc/backhaul/conf.d
	test -e $(DESTDIR)/etc/backhaul/backhaul.toml || \
		install -m 0644 deploy/backhaul.toml $(DESTDIR)/etc/backhaul/backhaul.toml
	install -d -m 0755 $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|/usr/bin/backhaul|$(PREFIX)/bin/backhaul|' deploy/backhaul.service \
		> $(DESTDIR)$(PREFIX)/lib/systemd/system/backhaul.service
	install -D -m 0644 deploy/backhaul.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/backhaul.conf

# `sudo make install` often has no cargo: then what was built before is installed.
$(AGENT): FORCE
	@if command -v $(CARGO) > /dev/null; then $(MAKE) build; \
	elif ! test -x $@; then echo "no cargo here, and no $@: run 'make build' first" >&2; exit 1; fi

clean:
	$(CARGO) clean
