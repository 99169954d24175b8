# Written, not run. Steps: docs/install.md#yocto.
SUMMARY = "Connectivity agent for small Linux gateways"
LICENSE = "MIT | Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE-MIT;md5=4aaea06f8a63fb26a1e9a3c86515ff25"

# A folder of the machine that builds, or a git address with its revision.
BACKHAUL_SRC ?= "git://${HOME}/backhaul;protocol=file;branch=main"
SRC_URI = "${BACKHAUL_SRC}"
SRCREV = "${AUTOREV}"
S = "${WORKDIR}/git"

# The crates with their checksums, written by `bitbake -c update_crates backhaul` beside this file.
require ${BPN}-crates.inc

inherit cargo cargo-update-recipe-crates pkgconfig useradd systemd update-rc.d

DEPENDS = "openssl"
CARGO_BUILD_FLAGS += "--bin backhaul"

USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system backhaul"
USERADD_PARAM:${PN} = "--system --gid backhaul --home-dir /var/lib/backhaul --no-create-home --shell /sbin/nologin backhaul"

SYSTEMD_SERVICE:${PN} = "backhaul.service"
INITSCRIPT_NAME = "backhaul"
INITSCRIPT_PARAMS = "defaults 95 5"

do_install:append() {
    install -d ${D}${sysconfdir}/backhaul/conf.d
    install -m 0644 ${S}/deploy/backhaul.toml ${D}${sysconfdir}/backhaul/backhaul.toml
    if ${@bb.utils.contains('DISTRO_FEATURES', 'systemd', 'true', 'false', d)}; then
        install -d ${D}${systemd_system_unitdir}
        install -m 0644 ${S}/deploy/init/systemd/backhaul.service ${S}/deploy/init/systemd/backhaul-provision.service \
            ${D}${systemd_system_unitdir}/
    fi
    if ${@bb.utils.contains('DISTRO_FEATURES', 'sysvinit', 'true', 'false', d)}; then
        install -D -m 0755 ${S}/deploy/init/sysv/backhaul ${D}${sysconfdir}/init.d/backhaul
    fi
}

FILES:${PN} += "${systemd_system_unitdir}"
CONFFILES:${PN} = "${sysconfdir}/backhaul/backhaul.toml"
# Trust in the upstream's certificate; without it only with ca_file.
RRECOMMENDS:${PN} = "ca-certificates"
