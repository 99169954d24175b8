# backhaul: demo, test, powercut, lint, build, install, package. Each target first installs the Debian packages it misses (deploy/need).

CARGO ?= cargo
PREFIX ?= /usr
DESTDIR ?=

AGENT = target/release/backhaul
NEED = sh deploy/need

# What `make long` runs, in this order; each is a target of its own.
LONG = soak-long herd-long herd-sweep powercut-long rot-long fuzz-long cuts-long vm-long kill-long model-long mutants-long \
	upgrade

.PHONY: all build demo install package packages cross clean FORCE
.PHONY: test lint size powercut mutants herd hostile soak test-arm test-vm upgrade bench-outbox bench-agent
.PHONY: long $(LONG)

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
	@$(NEED) pkg-config libssl-dev openssl python3 e2fsprogs nginx-light tinyproxy nftables iproute2 nodejs node-ws \
		python3-websockets haproxy binutils socat
	@CARGO="$(CARGO)" sh tests/parts

# The armv7 build under qemu-user; a part of `make test`. KILLS=n kills of the armv7 agent.
test-arm:
	@$(NEED) pkg-config libssl-dev qemu-user-static gcc-arm-linux-gnueabihf libc6-dev-armhf-cross
	@CARGO="$(CARGO)" sh tests/arm/run

# Whole ARM machines in QEMU whose power is cut, CUTS=10 times each; CASES='arm64-sd arm64-cache armhf-nand armhf-2038'.
test-vm:
	@$(NEED) pkg-config libssl-dev openssl python3 e2fsprogs binutils qemu-system-arm gcc-aarch64-linux-gnu \
		libc6-dev-arm64-cross gcc-arm-linux-gnueabihf libc6-dev-armhf-cross
	@CARGO="$(CARGO)" sh tests/vm/run

vm-long:
	@CUTS=100 $(MAKE) --no-print-directory test-vm

# The power-cut campaign: every short string of operations, cut at every call to the disk. CI's part, SECONDS of it;
# POWERCUT='…' replays one state.
SECONDS ?= 580
powercut:
	@$(NEED) pkg-config libssl-dev
	POWERCUT_SECONDS=$(SECONDS) $(CARGO) test --profile powercut --test powercut -- --nocapture

# 10⁹ states and more: a day on two cores. Stopped, it goes on where it was.
powercut-long:
	@$(NEED) pkg-config libssl-dev
	POWERCUT_LONG=1 $(CARGO) test --profile powercut --test powercut nothing_promised -- --nocapture

# Seeded bugs, each caught by the test that docs/testing.md names. One compilation of the outbox and a minute.
mutants:
	@$(NEED) pkg-config libssl-dev
	$(CARGO) test --profile powercut --features mutants --test mutants -- --nocapture

# The herd: 100,000 links in virtual time; 2,000 on real sockets, held against the simulation of the same; a receiver with
# 10,000 connections, and with 1,000 agents that send at once.
herd:
	@$(NEED) pkg-config libssl-dev
	$(CARGO) test --profile powercut --test herd -- --nocapture
	$(CARGO) test --features receiver --test herd sockets:: -- --nocapture

# 10,000 links on real sockets, at the times of the configuration.
herd-long:
	@$(NEED) pkg-config libssl-dev
	HERD_LINKS=10000 HERD_SCALE=1 $(CARGO) test --features receiver --test herd links_on_real_sockets -- --nocapture

# Other settings than the defaults, over outages of several lengths; twenty minutes.
herd-sweep:
	@$(NEED) pkg-config libssl-dev
	$(CARGO) test --profile powercut --test herd no_neighbour -- --ignored --nocapture

# Hostile folders, IMAGES of them; about a minute on two cores.
IMAGES ?= 160000
hostile:
	@$(NEED) pkg-config libssl-dev
	IMAGES=$(IMAGES) $(CARGO) test --profile powercut --test outbox_hostile -- --nocapture

# Real agents behind a cable that is cut, stalled, refused and answered 503 at random, and kills; two minutes of it are
# part of CI. `make soak HOURS=24`.
HOURS ?= 1
soak:
	@$(NEED) pkg-config libssl-dev
	SOAK_SECONDS=$$(($(HOURS) * 3600)) $(CARGO) test --features receiver --test soak -- --nocapture

soak-long:
	@$(NEED) pkg-config libssl-dev
	SOAK_SECONDS=600 $(CARGO) test --features receiver --test soak -- --nocapture

# Hours: every long entry, and the minutes of each at the end. Interrupted, it goes on with the first one that has not
# passed on this source (FRESH=1: with all of them).
long:
	@sh tests/long $(LONG)

# Every bit of a segment of 256 KiB: 2,097,152 flips in the backlog and as many in the newest segment, about two hours.
rot-long:
	@$(NEED) pkg-config libssl-dev
	SEGMENT_BYTES=262144 $(CARGO) test --profile powercut --test outbox_rot -- --nocapture

# Hostile folders under libFuzzer, which keeps what it found in fuzz/corpus and goes on with it. FUZZ_SECONDS of it, a
# day unless said otherwise. Needs a nightly compiler (`rustup toolchain install nightly`).
FUZZ_SECONDS ?= 86400
fuzz-long:
	@$(NEED) pkg-config libssl-dev
	@command -v cargo-fuzz > /dev/null || $(CARGO) install cargo-fuzz --locked
	$(CARGO) +nightly fuzz run open_any_image -- -max_total_time=$(FUZZ_SECONDS) -max_len=512 -rss_limit_mb=1024

# The model test with states enough for some of its configurations to be complete: MODEL_SECONDS each, 22 of them, as
# many at once as there are cores. Half a day, and some GiB.
MODEL_SECONDS ?= 3600
MODEL_STATES ?= 5000000
model-long:
	@$(NEED) pkg-config libssl-dev
	MODEL_SECONDS=$(MODEL_SECONDS) MODEL_STATES=$(MODEL_STATES) $(CARGO) test --profile powercut --test model -- --nocapture

# `cargo mutants` over the outbox: 1,880 changes, each compiled and put to the outbox's tests. Two days, perhaps;
# stopped, it goes on where it was. MUTANTS='-f src/outbox/runs.rs' takes one file.
MUTANTS ?= -f 'src/outbox/*.rs'
mutants-long:
	@$(NEED) pkg-config libssl-dev
	@command -v cargo-mutants > /dev/null || $(CARGO) install cargo-mutants --locked
	mkdir -p target/mutants
	$(CARGO) mutants --iterate -o target/mutants -e src/outbox/mutants.rs -e src/outbox/sim_disk.rs $(MUTANTS) -- \
		--lib --test outbox --test outbox_faults --test outbox_lanes --test outbox_ledger --test outbox_cli \
		--test outbox_images --test outbox_budget

# 15,001 SIGKILLs of agent and receiver; one more than the 15,000 power cycles reported of Mosquitto on a rig.
kill-long:
	@$(NEED) pkg-config libssl-dev
	KILLS=15001 $(CARGO) test --features receiver --test kill every_ -- --nocapture

# There and back between the agent of another revision and this one, with RECORDS waiting: by default the newest tag,
# or the first revision where there is none.
OLD ?= $(shell git describe --tags --abbrev=0 2> /dev/null || git rev-list --max-parents=0 HEAD | tail -n 1)
RECORDS ?= 10000
upgrade:
	@$(NEED) pkg-config libssl-dev git
	rm -rf target/upgrade/source && git worktree prune
	git worktree add --force --detach target/upgrade/source $(OLD)
	$(CARGO) build --bin backhaul --manifest-path target/upgrade/source/Cargo.toml --target-dir target/upgrade/build
	git worktree remove --force target/upgrade/source
	OLD_AGENT="$(CURDIR)/target/upgrade/build/debug/backhaul" RECORDS=$(RECORDS) \
		$(CARGO) test --features receiver --test upgrade there_and_back -- --nocapture

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

# What the agent's bytes are, part by part, and how many there were when somebody last looked. `make size RECORD=1`
# takes today's down; CI fails when it has grown by more than 5 % since.
size:
	@$(NEED) pkg-config libssl-dev binutils
	@CARGO="$(CARGO)" sh tests/size table

# Power cuts of a filmed ext4 under the real agent, 2,000 of them. As root.
cuts-long:
	@$(NEED) pkg-config libssl-dev e2fsprogs
	CUTS=500 ROUNDS=4 $(CARGO) test --features receiver --test real_fs -- --nocapture --test-threads=2

lint:
	@$(NEED) pkg-config libssl-dev
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path bench/Cargo.toml
	$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) clippy --all-targets --no-default-features -- -D warnings
	$(CARGO) clippy --all-targets --features receiver,mutants -- -D warnings

# As root, or into DESTDIR. A configuration that is there stays as it is.
install: $(AGENT)
	install -D -m 0755 $(AGENT) $(DESTDIR)$(PREFIX)/bin/backhaul
	install -d -m 0755 $(DESTDIR)/etc/backhaul/conf.d
	test -e $(DESTDIR)/etc/backhaul/backhaul.toml || \
		install -m 0644 deploy/backhaul.toml $(DESTDIR)/etc/backhaul/backhaul.toml
	install -d -m 0755 $(DESTDIR)$(PREFIX)/lib/systemd/system
	for unit in backhaul.service backhaul-provision.service; do \
		sed 's|/usr/bin/backhaul|$(PREFIX)/bin/backhaul|' deploy/init/systemd/$$unit \
			> $(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit; done
	install -D -m 0644 deploy/init/systemd/backhaul.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/backhaul.conf

# `sudo make install` often has no cargo: then what was built before is installed.
$(AGENT): FORCE
	@if command -v $(CARGO) > /dev/null; then $(MAKE) build; \
	elif ! test -x $@; then echo "no cargo here, and no $@: run 'make build' first" >&2; exit 1; fi

# The packages of one board of boards/, and of all of them: by zig, without containers. `make cross` is the same in one.
BOARD ?= raspberry-pi-4
package:
	sh deploy/build $(BOARD)

packages:
	for folder in boards/*/; do sh deploy/build $$(basename $$folder) || exit 1; done

cross:
	sh deploy/build --cross $(BOARD)

clean:
	$(CARGO) clean
