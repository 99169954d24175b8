################################################################################
#
# backhaul
#
################################################################################

# Written, not run. Steps: docs/install.md#buildroot.
BACKHAUL_VERSION = 0.1.0
# The source tree that this file lies in.
BACKHAUL_SITE = $(BR2_EXTERNAL_BACKHAUL_PATH)/../..
BACKHAUL_SITE_METHOD = local
# Buildroot fetches crates when it downloads, which it does not with a local tree: run `cargo vendor` there before
# (docs/install.md#buildroot).
BACKHAUL_LICENSE = MIT or Apache-2.0
BACKHAUL_LICENSE_FILES = LICENSE-MIT LICENSE-APACHE
BACKHAUL_DEPENDENCIES = host-pkgconf openssl
BACKHAUL_CARGO_BUILD_OPTS = --bin backhaul

define BACKHAUL_INSTALL_TARGET_CMDS
	$(INSTALL) -D -m 0755 $(@D)/target/$(RUSTC_TARGET_NAME)/release/backhaul $(TARGET_DIR)/usr/bin/backhaul
	$(INSTALL) -d -m 0755 $(TARGET_DIR)/etc/backhaul/conf.d
	$(INSTALL) -D -m 0644 $(@D)/deploy/backhaul.toml $(TARGET_DIR)/etc/backhaul/backhaul.toml
endef

define BACKHAUL_INSTALL_INIT_SYSV
	$(INSTALL) -D -m 0755 $(@D)/deploy/init/sysv/backhaul $(TARGET_DIR)/etc/init.d/S50backhaul
endef

define BACKHAUL_INSTALL_INIT_OPENRC
	$(INSTALL) -D -m 0755 $(@D)/deploy/init/openrc/backhaul $(TARGET_DIR)/etc/init.d/backhaul
endef

define BACKHAUL_INSTALL_INIT_SYSTEMD
	$(INSTALL) -D -m 0644 $(@D)/deploy/init/systemd/backhaul.service $(TARGET_DIR)/usr/lib/systemd/system/backhaul.service
	$(INSTALL) -D -m 0644 $(@D)/deploy/init/systemd/backhaul-provision.service \
		$(TARGET_DIR)/usr/lib/systemd/system/backhaul-provision.service
endef

define BACKHAUL_USERS
	backhaul -1 backhaul -1 * /var/lib/backhaul - - backhaul connectivity agent
endef

$(eval $(cargo-package))
