#!/bin/sh
# install.sh [--init=NAME] [DESTDIR=PATH]: installs backhaul from this folder, as root. What is configured stays.
#   --init=NAME   systemd, sysv, busybox, openrc, runit, procd or none; without it, what this machine runs
#   --uninstall   removes the program and the service; outbox and configuration stay
#   --purge       with --uninstall: removes these, too
set -eu
umask 022
DESTDIR=${DESTDIR:-}
init=
uninstall=
purge=
for argument; do
    case $argument in
    --init=*) init=${argument#*=} ;;
    --uninstall) uninstall=1 ;;
    --purge) purge=1 ;;
    DESTDIR=*) DESTDIR=${argument#*=} ;;
    *)
        sed -n 's/^# \{0,1\}//p' "$0" | sed '1d;6q' >&2
        exit 64 ;;
    esac
done
here=$(cd "$(dirname "$0")" && pwd)
# Where the board has its outbox, if not at the usual place.
outbox=$(sed -n '/^\[outbox\]/,/^\[/s/^dir = "\(.*\)"$/\1/p' "$here/10-board.toml")
: "${outbox:=/var/lib/backhaul}"

which_init() {
    if [ -d "$DESTDIR/run/systemd/system" ] || [ -x "$DESTDIR/lib/systemd/systemd" ]; then echo systemd
    elif [ -e "$DESTDIR/sbin/procd" ]; then echo procd
    elif [ -e "$DESTDIR/sbin/openrc-run" ] || [ -e "$DESTDIR/usr/sbin/openrc-run" ]; then echo openrc
    elif [ -d "$DESTDIR/etc/runit" ]; then echo runit
    elif [ -d "$DESTDIR/etc/rc2.d" ]; then echo sysv
    elif [ -d "$DESTDIR/etc/init.d" ]; then echo busybox
    else echo none; fi
}
if [ -z "$init" ]; then init=$(which_init); fi

# Where the service of each init system lies: from, to, mode.
services() {
    case $init in
    systemd)
        echo "systemd/backhaul.service usr/lib/systemd/system/backhaul.service 0644"
        echo "systemd/backhaul-provision.service usr/lib/systemd/system/backhaul-provision.service 0644"
        echo "systemd/backhaul.sysusers usr/lib/sysusers.d/backhaul.conf 0644" ;;
    sysv) echo "sysv/backhaul etc/init.d/backhaul 0755" ;;
    busybox) echo "sysv/backhaul etc/init.d/S50backhaul 0755" ;;
    openrc) echo "openrc/backhaul etc/init.d/backhaul 0755" ;;
    procd) echo "procd/backhaul etc/init.d/backhaul 0755" ;;
    runit)
        echo "runit/backhaul/run etc/sv/backhaul/run 0755"
        echo "runit/backhaul/finish etc/sv/backhaul/finish 0755"
        echo "runit/backhaul/log/run etc/sv/backhaul/log/run 0755" ;;
    none) ;;
    *)
        echo "--init=$init: systemd, sysv, busybox, openrc, runit, procd or none" >&2
        exit 64 ;;
    esac
}

list=$(services)

# BusyBox has no `install -D` everywhere.
put() {
    mkdir -p "$(dirname "$3")"
    # Over a program that runs: a new file under its name.
    cp "$2" "$3.new"
    chmod "$1" "$3.new"
    mv "$3.new" "$3"
}

# Only on the machine itself, not in the root of an image.
service() {
    [ -z "$DESTDIR" ] || return 0
    case $init/$1 in
    systemd/enable) ! [ -d /run/systemd/system ] || systemctl daemon-reload; systemctl --quiet enable backhaul ;;
    systemd/disable) ! [ -d /run/systemd/system ] || systemctl --quiet disable --now backhaul ;;
    sysv/enable) ! command -v update-rc.d > /dev/null || update-rc.d backhaul defaults ;;
    sysv/disable) /etc/init.d/backhaul stop || true ;;
    busybox/disable) /etc/init.d/S50backhaul stop || true ;;
    openrc/enable) rc-update -q add backhaul default ;;
    openrc/disable) rc-service backhaul stop || true; rc-update -q delete backhaul || true ;;
    procd/enable) /etc/init.d/backhaul enable ;;
    procd/disable) /etc/init.d/backhaul stop || true; /etc/init.d/backhaul disable || true ;;
    runit/enable) mkdir -p /etc/service && ln -sfn /etc/sv/backhaul /etc/service/backhaul ;;
    runit/disable) rm -f /etc/service/backhaul ;;
    esac
}

if [ -n "$uninstall" ]; then
    service disable
    while read -r _ to _; do
        [ -z "$to" ] || rm -f "$DESTDIR/$to"
    done <<LIST
$list
LIST
    rm -f "$DESTDIR/usr/bin/backhaul"
    rm -rf "$DESTDIR/usr/share/doc/backhaul" "$DESTDIR/etc/sv/backhaul"
    if [ "$init" = sysv ] && [ -z "$DESTDIR" ] && command -v update-rc.d > /dev/null; then update-rc.d backhaul remove; fi
    if [ -n "$purge" ]; then
        rm -rf "$DESTDIR/etc/backhaul"
        # Its own partition, perhaps, or a link to a folder elsewhere: emptied then.
        if [ -d "$DESTDIR$outbox" ]; then rm -rf "$DESTDIR$outbox"/* "$DESTDIR$outbox"/.[!.]*; fi
        rmdir "$DESTDIR$outbox" 2> /dev/null || true
        echo "backhaul: removed, with its outbox ($outbox) and its configuration"
    else
        echo "backhaul: removed; $outbox and /etc/backhaul stay (--uninstall --purge removes them)"
    fi
    exit
fi

if [ -z "$DESTDIR" ] && ! "$here/backhaul" --version > /dev/null 2>&1; then
    echo "backhaul: this program does not run on this machine ($(uname -m)): take the one of its board" >&2
    exit 1
fi
put 0755 "$here/backhaul" "$DESTDIR/usr/bin/backhaul"
mkdir -p "$DESTDIR/etc/backhaul/conf.d" "$DESTDIR$outbox"
for file in backhaul.toml 10-board.toml; do
    to=$DESTDIR/etc/backhaul/$file
    [ $file = backhaul.toml ] || to=$DESTDIR/etc/backhaul/conf.d/$file
    if ! [ -e "$to" ]; then
        put 0644 "$here/$file" "$to"
    elif ! cmp -s "$here/$file" "$to"; then
        # What was changed on the machine stays; what is new lies beside it.
        put 0644 "$here/$file" "$to.dist"
        echo "backhaul: $to stays as it is; the new one is $to.dist"
    fi
done
for paper in "$here"/doc/*; do put 0644 "$paper" "$DESTDIR/usr/share/doc/backhaul/${paper##*/}"; done
while read -r from to mode; do
    [ -z "$from" ] || put "$mode" "$here/init/$from" "$DESTDIR/$to"
done <<LIST
$list
LIST

if [ -z "$DESTDIR" ]; then
    if ! grep -q '^backhaul:' /etc/passwd; then
        if command -v useradd > /dev/null; then
            useradd --system --user-group --no-create-home --home-dir /var/lib/backhaul --shell /sbin/nologin backhaul
        elif command -v adduser > /dev/null; then
            addgroup -S backhaul
            adduser -S -D -H -h /var/lib/backhaul -s /sbin/nologin -G backhaul backhaul
        else
            # OpenWrt has neither.
            echo 'backhaul:x:970:970:backhaul:/var/lib/backhaul:/bin/false' >> /etc/passwd
            echo 'backhaul:x:970:' >> /etc/group
        fi
    fi
    chown backhaul:backhaul "$outbox"
fi
chmod 0750 "$DESTDIR$outbox"
service enable
echo "backhaul: installed for $init; set the endpoint in /etc/backhaul/conf.d/50-site.toml, then start the service"
