# The life of the package on a machine without a running systemd: installed, changed by a person, upgraded, removed,
# installed again, purged. /tmp/1.deb is a version, /tmp/2.deb the next one.
say() { echo "ok: $*"; }
fail() { echo "FAILED: $*"; exit 1; }
mode() { stat -c '%U:%G %a' "$1"; }

rm -rf /etc/backhaul /var/lib/backhaul
# As in a chroot that makes an image: whoever wants to start a service is told no, and written down.
printf '#!/bin/sh\necho "$*" >> /tmp/asked\nexit 101\n' > /usr/sbin/policy-rc.d
chmod +x /usr/sbin/policy-rc.d

dpkg -i /tmp/1.deb || fail "installs"
[ "$(mode /var/lib/backhaul)" = "backhaul:backhaul 750" ] || fail "outbox is $(mode /var/lib/backhaul)"
id backhaul > /dev/null || fail "has a user"
[ "$(id -u backhaul)" -lt 1000 ] || fail "the user is of the system"
[ -L /etc/systemd/system/multi-user.target.wants/backhaul.service ] || fail "is enabled for systemd"
ls /etc/rc2.d/S*backhaul > /dev/null || fail "is enabled for SysV"
[ ! -e /tmp/asked ] || fail "starts nothing with an example's configuration: $(cat /tmp/asked)"
backhaul check > /tmp/checked 2>&1 || fail "its configuration is taken: $(cat /tmp/checked)"
grep -q '^# read /etc/backhaul/conf.d/10-board.toml' /tmp/checked || fail "the board's part is read"
say installed

echo '# a person was here' >> /etc/backhaul/backhaul.toml
echo '# and here' >> /etc/backhaul/conf.d/50-site.toml
echo record > /var/lib/backhaul/record
dpkg -i --force-confold /tmp/2.deb || fail "upgrades"
grep -q 'a person was here' /etc/backhaul/backhaul.toml || fail "configuration is kept over an upgrade"
[ -e /var/lib/backhaul/record ] && [ -e /etc/backhaul/conf.d/50-site.toml ] || fail "outbox is kept over an upgrade"
say upgraded

systemctl disable backhaul.service > /dev/null 2>&1 || rm /etc/systemd/system/multi-user.target.wants/backhaul.service
dpkg -i --force-confold /tmp/1.deb || fail "downgrades"
[ ! -e /etc/systemd/system/multi-user.target.wants/backhaul.service ] || fail "what was disabled stays disabled"
say downgraded

dpkg -r backhaul || fail "is removed"
[ ! -e /usr/bin/backhaul ] || fail "the program is gone"
[ -e /var/lib/backhaul/record ] || fail "remove keeps the outbox"
grep -q 'a person was here' /etc/backhaul/backhaul.toml || fail "remove keeps the configuration"
say removed

dpkg -i --force-confold /tmp/2.deb || fail "is installed again"
[ -e /var/lib/backhaul/record ] || fail "and finds its outbox"
dpkg -P backhaul > /tmp/purged || fail "is purged"
grep -q 'removing the outbox, [0-9]* KiB' /tmp/purged || fail "purge says what it removes: $(cat /tmp/purged)"
for path in /var/lib/backhaul /etc/backhaul /usr/bin/backhaul /etc/init.d/backhaul /usr/share/doc/backhaul \
    /etc/systemd/system/backhaul.service /etc/systemd/system/multi-user.target.wants/backhaul.service; do
    [ ! -e "$path" ] && [ ! -L "$path" ] || fail "purge leaves $path"
done
! ls /etc/rc2.d/S*backhaul > /dev/null 2>&1 || fail "purge leaves a link of SysV"
id backhaul > /dev/null || fail "purge leaves the user: files elsewhere may be its"
say purged

mkdir /tmp/data
ln -s /tmp/data /var/lib/backhaul
dpkg -i /tmp/1.deb || fail "is installed with a link to the outbox"
[ "$(mode /tmp/data)" = "backhaul:backhaul 750" ] || fail "the folder elsewhere is $(mode /tmp/data)"
echo record > /tmp/data/record
dpkg -P backhaul || fail "is purged with a link to the outbox"
[ ! -e /tmp/data/record ] || fail "purge leaves the outbox behind a link"
say purged elsewhere
