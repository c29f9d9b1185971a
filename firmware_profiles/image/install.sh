#!/bin/sh
# Installs the edge-flchain client from the folder that this script lies in: as root, without a network, once.
# A power cut anywhere is harmless: the next boot starts it again, and each of the two marks says what is complete.
set -eu
seed=$(cd "$(dirname "$0")" && pwd)
state=/var/lib/flchain
[ ! -e "$state/.installed" ] || exit 0

if [ ! -e "$state/.copied" ]; then
    # A board without a clock battery wakes up in the past, where every certificate is not valid yet.
    built=$(stat -c %Y "$seed/SHA256SUMS")
    [ "$(date +%s)" -ge "$built" ] || date -s "@$built" >/dev/null

    (cd "$seed" && sha256sum --quiet -c SHA256SUMS)

    id flchain >/dev/null 2>&1 || useradd --system --user-group --home-dir "$state" --shell /usr/sbin/nologin flchain
    install -d -m 0700 -o flchain -g flchain "$state"
    for file in "$seed"/state/*; do
        install -m 0600 -o flchain -g flchain "$file" "$state/"
    done
    if [ -d "$seed/wheels" ]; then
        # Two environments side by side and two links: an upgrade fills the other one and moves a link. The client unpacks
        # itself out of its wheel: no pip, which the system may lack and a small board is slow with.
        set -- "$seed"/wheels/edge_flchain-*.whl
        PYTHONPATH=$1 PYTHONDONTWRITEBYTECODE=1 python3 -m edge_sdk.upgrade.first_install /opt/flchain "$seed/wheels"
    fi
    if [ -e "$seed/wifi.nmconnection" ]; then
        install -D -m 0600 "$seed/wifi.nmconnection" /etc/NetworkManager/system-connections/flchain-wifi.nmconnection
    fi
    for unit in flchain-device.service flchain-upgrade.service flchain-upgrade.timer flchain-upgrade-boot.service; do
        install -D -m 0644 "$seed/$unit" "/etc/systemd/system/$unit"
    done
    install -D -m 0644 "$seed/journald.conf" /etc/systemd/journald.conf.d/flchain.conf
    systemctl enable flchain-device.service
    if [ -d "$seed/upgrade" ]; then
        # Not the device's to write: who controls these files controls what root installs.
        for file in "$seed"/upgrade/*; do
            install -D -m 0644 "$file" "/etc/flchain/${file##*/}"
        done
        # The first upgrade needs few other wheels than these.
        install -d -m 0700 /var/lib/flchain-upgrade
        ln -sfn "$seed/wheels" /var/lib/flchain-upgrade/wheels
        systemctl enable flchain-upgrade.timer flchain-upgrade-boot.service
    fi
    sync
    touch "$state/.copied"
    sync
fi

# The claim is single-use, and has its place on the board by now: no copy stays in the seed.
rm -f "$seed"/state/* "$seed/wifi.nmconnection"
touch "$state/.installed"
sync
# Where systemd is not running yet, or stops after this (firstrun), the next boot starts the service.
systemctl daemon-reload || exit 0
systemctl start --no-block flchain-device.service || exit 0
if [ -e /etc/flchain/upgrade.toml ]; then
    systemctl start --no-block flchain-upgrade.timer || exit 0
fi
