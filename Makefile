# backhaul: demo, test, lint, build, install. Each target first installs the Debian packages it misses (deploy/need).

CARGO ?= cargo
PREFIX ?= /usr
DESTDIR ?=

AGENT = target/release/backhaul
NEED = sh deploy/need

.PHONY: all build demo test cuts-long lint install clean FORCE

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

# Power cuts of a filmed ext4 under the real agent, 2,000 of them. As root.
cuts-long:
	@$(NEED) pkg-config libssl-dev e2fsprogs
	CUTS=500 ROUNDS=4 $(CARGO) test --features receiver --test real_fs -- --nocapture --test-threads=2

lint:
	@$(NEED) pkg-config libssl-dev
	$(CARGO) fmt --check
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
